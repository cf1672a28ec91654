"""Features come out in order, from a model in eval mode, and leave the model as it was."""

import pytest
import torch
from torch import nn

from kdnb.evaluation.features import Features, check_features, check_pair, extract_features, raw_pixels, stratified_split


class Model(nn.Module):
    """Mean colour as feature; behaves differently in training mode."""

    def __init__(self, answer):
        super().__init__()
        self.norm, self.answer = nn.BatchNorm2d(3, affine=False), answer

    def forward(self, images):
        if self.training:
            raise AssertionError("the model is in training mode")
        return self.answer(self.norm(images).mean((2, 3)))


def batches(sizes=(4, 4, 2), labelled=True):
    first = 0
    for size in sizes:
        ids = torch.arange(first, first + size)
        images = ids[:, None, None, None].expand(size, 3, 2, 2).to(torch.uint8).clone()
        batch = {"image": images, "id": ids + 100}
        if labelled:
            batch["label"] = ids % 3
        yield batch
        first += size


def as_float(images):
    return images.float()


def mean_colour(x):
    return x


def test_rows_labels_and_ids_stay_in_order_with_and_without_a_known_length():
    listed = extract_features(Model(mean_colour).eval(), list(batches()), transform=as_float)
    streamed = extract_features(Model(mean_colour).eval(), batches(), transform=as_float)
    for found in (listed, streamed):
        # The running mean is 0 and the variance 1, so a feature is the colour but for BatchNorm's 1e-5.
        assert torch.allclose(found.features, torch.arange(10.0)[:, None].expand(10, 3), rtol=1e-4)
        assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
        assert found.ids.tolist() == list(range(100, 110))
        assert found.features.dtype == torch.float32 and found.ids.dtype == torch.int64 and found.logits is None
        assert len(found.features.untyped_storage()) <= 12 * 3 * 4  # no spare room of a stream is kept


def test_a_first_batch_that_is_smaller_than_the_rest():
    found = extract_features(Model(mean_colour), list(batches((1, 5, 5, 3))), transform=as_float)
    assert found.ids.tolist() == list(range(100, 114)) and len(found.features) == 14


@pytest.mark.parametrize("answer, factor, logits", [
    (lambda x: {"features": x, "embedding": 2 * x, "projected": 3 * x}, 2, None),
    (lambda x: {"features": x, "logits": x[:, :2]}, 1, 2),
    (lambda x: {"features": x, "logits": None}, 1, None),
    (lambda x: x, 1, None),
])  # fmt: skip
def test_the_embedding_is_taken_and_else_the_features(answer, factor, logits):
    found = extract_features(Model(answer), batches(), transform=as_float)
    assert found.features[3].tolist() == pytest.approx([3 * factor] * 3, rel=1e-4)
    assert (None if found.logits is None else found.logits.shape[1]) == logits


def test_every_submodule_gets_its_mode_back_even_after_an_error():
    model = Model(mean_colour).train()
    model.norm.eval()  # a frozen norm inside a training model
    before = model.norm.running_mean.clone()
    extract_features(model, batches(), transform=as_float)
    assert model.training and not model.norm.training
    assert torch.equal(model.norm.running_mean, before)
    with pytest.raises(ValueError, match=r"shape \[4, 3, 1\]; expected \[B, D\], pooled"):
        extract_features(Model(lambda x: x[..., None]).train(), batches(), transform=as_float)
    model.answer = lambda x: x[..., None]
    with pytest.raises(ValueError):
        extract_features(model, batches(), transform=as_float)
    assert model.training and not model.norm.training


def test_a_keyed_view_gets_ids_and_epoch_0_and_its_first_view_is_used():
    calls = []

    def views(images, ids, epoch):
        calls.append((ids.tolist(), epoch))
        return [images.float() + 1, images.float() * 0]

    found = extract_features(Model(mean_colour), batches((2, 1)), transform=views)
    assert calls == [([100, 101], 0), ([102], 0)]
    assert found.features[:, 0].tolist() == pytest.approx([1, 2, 3], rel=1e-4)


def test_a_head_can_be_trained_on_what_comes_out():
    model = Model(nn.Linear(3, 3))
    found = extract_features(model, batches(), transform=as_float)
    assert not found.features.requires_grad and not found.features.is_inference()
    nn.Linear(3, 2)(found.features).sum().backward()


def test_unlabelled_mixed_and_empty_sources():
    assert extract_features(Model(mean_colour), batches(labelled=False), transform=as_float).labels is None
    mixed = [*batches((2,)), *batches((2,), labelled=False)]
    with pytest.raises(ValueError, match="some batches have labels and others have not"):
        extract_features(Model(mean_colour), mixed, transform=as_float)
    with pytest.raises(ValueError, match="batches is empty"):
        extract_features(Model(mean_colour), [], transform=as_float)


def test_an_output_without_features_names_what_there_is():
    with pytest.raises(ValueError, match="no 'embedding' and no 'features', only 'logits', 'loss'"):
        extract_features(Model(lambda x: {"logits": x, "loss": x}), batches(), transform=as_float)


def test_raw_pixels_are_shares_of_255_channel_by_channel():
    image = torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8).expand(3, 2, 2)[None]
    found = raw_pixels([{"image": image, "id": torch.tensor([7])}])
    assert found.features.tolist() == [pytest.approx([0, 1, 0.2, 0.4] * 3)]
    assert found.ids.tolist() == [7] and found.labels is None and found.logits is None


def test_raw_pixels_of_a_float_cache_undo_the_normalisation():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    image = torch.rand(2, 3, 4, 4)
    normalised = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    batch = {"image": normalised, "id": torch.arange(2)}
    found = raw_pixels([batch], mean=mean, std=std).features
    assert torch.allclose(found, image.flatten(1), atol=1e-6)
    with pytest.raises(ValueError, match="torch.float32, normalised; pass mean and std"):
        raw_pixels([batch])


def test_raw_pixels_of_large_images_are_block_means():
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    image[:, :, :2, :2] = torch.tensor([[0, 255], [255, 0]])
    found = raw_pixels([{"image": image, "id": torch.arange(1)}], size=2).features
    assert found.tolist() == [pytest.approx([0.5, 0, 0, 0] * 3)]


def features(rows=4, width=2, labels=(0, 1, 2, 1)):
    labels = None if labels is None else torch.tensor(labels)
    return Features(torch.randn(rows, width), labels, torch.arange(rows))


def test_a_good_pair_gives_the_number_of_classes():
    assert check_pair(features(), features(labels=(0, 0, 0, 0)), None) == 3
    assert check_pair(features(), features(), 10) == 10
    assert check_pair(features(labels=(0, 1, 1, 0)), features(), None) == 3  # a class that few training rows lack


@pytest.mark.parametrize("train, test, classes, message", [
    (features(labels=None), features(), None, "train features have no labels"),
    (features(), features(labels=None), None, "test features have no labels"),
    (features(labels=(1, 1, 1, 1)), features(), None, "train labels are all 1; at least two classes"),
    (features(labels=(0, 1, 1, 0)), features(), 2, "test labels go from 0 to 2; allowed is 0 to 1"),
    (features(labels=(0, -1, 1, 0)), features(), 5, "train labels go from -1 to 1; allowed is 0 to 4"),
    (features(labels=(0, 1)), features(), None, r"train labels have shape \[2\], but there are 4 rows"),
    (features(width=3), features(), None, "train features are 3 wide and test features 2"),
    (features(0, 2, ()), features(), None, r"train features have shape \[0, 2\]"),
])  # fmt: skip
def test_a_bad_pair_is_refused_in_one_sentence(train, test, classes, message):
    with pytest.raises(ValueError, match=message):
        check_pair(train, test, classes)


def test_values_that_are_not_finite_are_counted_and_located():
    x = torch.zeros(5, 2)
    x[3, 1], x[4, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="student features are not finite in 2 of 5 rows .the first is row 3."):
        check_features(x, "student")


def test_the_split_is_stratified_and_seeded():
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 3 + [3])
    held_out = stratified_split(labels, fraction=0.1, seed=0)
    assert torch.bincount(labels[held_out], minlength=4).tolist() == [5, 2, 1, 0]
    assert torch.equal(held_out, stratified_split(labels, fraction=0.1, seed=0))
    assert not torch.equal(held_out, stratified_split(labels, fraction=0.1, seed=1))
    assert torch.bincount(labels[stratified_split(labels, fraction=0.999, seed=0)], minlength=4).tolist() == [49, 19, 2, 0]
