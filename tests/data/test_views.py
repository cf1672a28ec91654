"""Views: the same key gives bitwise the same view, whatever the batch; the right crops, and random numbers that are."""

import pickle
from dataclasses import replace

import pytest
import torch

from kdnb.data.augment import normalise, unit_range
from kdnb.data.views import CleanTransform, FastMultiCropTransform, SimpleTransform

STORED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TRANSFORMS = {
    "clean": CleanTransform(size=12),
    "simple": SimpleTransform(size=16, seed=3),
    "multicrop": FastMultiCropTransform(global_size=16, local_size=8, local_crops_number=2, use_local_crops=True),
}
each_transform = pytest.mark.parametrize("views", TRANSFORMS.values(), ids=TRANSFORMS)


def batch(count=40, size=20):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8), torch.arange(count) * 7 + 1000


@each_transform
@pytest.mark.parametrize("part", [slice(0, 7), slice(13, 14), slice(5, 40, 3)])
def test_a_view_does_not_depend_on_the_batch_around_it(views, part):
    images, ids = batch()
    whole = views(images, ids, 4)
    assert len(whole) == views.num_views >= views.num_global
    for alone, together in zip(views(images[part], ids[part], 4), whole, strict=True):
        assert torch.equal(alone, together[part])
    order = torch.randperm(len(ids))
    for shuffled, together in zip(views(images[order], ids[order], 4), whole, strict=True):
        assert torch.equal(shuffled, together[order])


@pytest.mark.parametrize("name", ["simple", "multicrop"])
def test_each_part_of_the_key_changes_the_view(name):
    views, (images, ids) = TRANSFORMS[name], batch()
    first = views(images, ids, 0)[0]
    for other in (views(images, ids, 1)[0], views(images, ids + 1, 0)[0]):
        assert (first != other).flatten(1).any(1).sum() >= 38
    again = pickle.loads(pickle.dumps(views))
    assert torch.equal(again(images, ids, 0)[0], first)
    again.seed += 1
    assert not torch.equal(again(images, ids, 0)[0], first)


def test_shapes_and_order_of_the_crops():
    images, ids = batch(3)
    shapes = [view.shape for view in TRANSFORMS["multicrop"](images, ids, 0)]
    assert shapes == [(3, 3, 16, 16)] * 2 + [(3, 3, 8, 8)] * 2
    off = FastMultiCropTransform(global_size=16, local_size=8)
    assert off.num_views == 2 == len(off(images, ids, 0))
    assert [view.shape for view in TRANSFORMS["clean"](images, ids, 0)] == [(3, 3, 12, 12)]


@each_transform
def test_an_empty_batch_gives_empty_views(views):
    images, ids = batch(0)
    assert [len(view) for view in views(images, ids, 0)] == [0] * views.num_views


def test_without_a_change_of_size_the_clean_view_is_the_image():
    images, ids = batch(4, size=12)
    assert torch.equal(TRANSFORMS["clean"](images, ids, 0)[0], images.float().mul(1 / 255))


def test_a_crop_of_everything_is_the_image_or_its_mirror():
    images, ids = batch(64, size=16)
    views = SimpleTransform(size=16, scale=(1, 1), ratio=(1, 1))(images, ids, 0)[0]
    plain = unit_range(images)
    same = [torch.allclose(view, image, atol=1e-5) for view, image in zip(views, plain, strict=True)]
    mirrored = [torch.allclose(view, image.flip(-1), atol=1e-5) for view, image in zip(views, plain, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True)) and 20 < sum(mirrored) < 44
    upright = SimpleTransform(size=16, scale=(1, 1), ratio=(1, 1), horizontal_flip=False)
    assert torch.allclose(upright(images, ids, 0)[0], plain, atol=1e-5)


@each_transform
def test_views_lie_between_0_and_1(views):
    images, ids = batch()
    for view in views(images, ids, 0):
        assert view.dtype == torch.float32 and view.min() >= 0 and view.max() <= 1 + 1e-5


def test_float_caches_give_the_views_of_the_images_that_they_hold():
    images, ids = batch()
    for name, tolerance in (("clean", 1e-6), ("simple", 1e-5), ("multicrop", 1e-3)):
        stored, plain = normalise(images, **STORED), TRANSFORMS[name](images, ids, 2)
        undoing = replace(TRANSFORMS[name], **STORED)
        for images_as_stored, views in ((stored, undoing), (stored.half(), undoing), (unit_range(images), TRANSFORMS[name])):
            loose = tolerance if images_as_stored.dtype == torch.float32 else 2e-2
            for a, b in zip(plain, views(images_as_stored, ids, 2), strict=True):
                assert torch.allclose(a, b, atol=loose)


def test_crops_have_the_areas_of_scale():
    """A picture that says where each pixel was: the crop's width shows in the range of its values."""
    ramp = torch.arange(256, dtype=torch.uint8).expand(1, 3, 256, 256).expand(500, -1, -1, -1)
    views = SimpleTransform(size=32, scale=(0.25, 0.25), ratio=(1, 1))
    seen = views(ramp, torch.arange(500), 0)[0][:, 0, 0] * 255
    widths = seen.amax(1) - seen.amin(1)
    assert torch.allclose(widths, torch.tensor(128 * 31 / 32), atol=2)
    left = seen.amin(1)
    assert left.min() < 12 and left.max() > 116  # every corner comes up


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda v: v(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2), 0), r"images has shape \[2, 1, 4, 4\]"),
        (lambda v: v(batch(2)[0], torch.arange(3), 0), "each image needs one id"),
        (lambda v: v(batch(2)[0], torch.arange(2).float(), 0), "keyed by an int64 tensor on the host"),
        (lambda v: v(batch(2)[0].long(), torch.arange(2), 0), "images is torch.int64"),
        (lambda v: SimpleTransform(size=0), "size is 0"),
        (lambda v: SimpleTransform(size=4, scale=(0, 1)), r"scale is \(0, 1\)"),
        (lambda v: SimpleTransform(size=4, scale=(0.5, 1.5)), r"a crop's share of the area lies in \(0, 1\]"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(TRANSFORMS["simple"])
