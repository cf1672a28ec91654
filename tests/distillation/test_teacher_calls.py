"""The teacher: frozen, asked per view; a stored answer is the live one, belongs to one view, and survives kills."""

import numpy as np
import pytest
import torch
from torch import nn

from kdnb.data.reader import ShardReader
from kdnb.data.views import RepeatedViews, SimpleTransform
from kdnb.distillation.teacher import CachedTeacher, LiveTeacher
from kdnb.distillation.teacher_outputs import OutputCodec, TeacherCache
from kdnb.models.vision import FeatureModel, build_model, freeze


def test_one_answer_a_view_without_gradients():
    teacher = LiveTeacher(freeze(FeatureModel(build_model("cifar_resnet8", num_classes=3))))
    answers = teacher([torch.randn(2, 3, 8, 8), torch.randn(2, 3, 12, 12)], {})
    assert [answer["features"].shape for answer in answers] == [(2, 64)] * 2
    assert not any(answer["logits"].requires_grad for answer in answers)


def test_a_teacher_that_is_not_frozen_is_refused():
    with pytest.raises(ValueError, match="not frozen"):
        LiveTeacher(FeatureModel(build_model("cifar_resnet8")))


def codec(**changes) -> OutputCodec:
    return OutputCodec(**{"feature_dim": 4, "num_classes": 3, "storage": "float32"} | changes)


@pytest.mark.parametrize("storage, tolerance", [("float32", 0), ("float16", 1e-3)])
def test_answers_survive_the_format(storage, tolerance):
    answer = {"features": torch.randn(6, 4), "logits": torch.randn(6, 3), "layers": [torch.randn(6, 2)]}
    rows = codec(storage=storage, layer_dims=(2,)).encode(answer)
    back = codec(storage=storage, layer_dims=(2,)).decode(rows, torch.device("cpu"))
    assert rows.dtype.itemsize == 9 * (4 if storage == "float32" else 2)
    for name in ("features", "logits"):
        assert torch.allclose(back[name], answer[name], atol=tolerance, rtol=0) and back[name].dtype == torch.float32
    assert torch.allclose(back["layers"][0], answer["layers"][0], atol=tolerance, rtol=0)


def test_the_largest_logits_are_exact_and_the_rest_shares_its_mass():
    """Logits log(0.5), log(0.3), log(0.1), log(0.1): two kept, 0.2 spread over the other two."""
    logits = torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.1, 0.5, 0.1, 0.3]]).log() + 7
    pair = codec(num_classes=4, top_k=2)
    back = pair.decode(pair.encode({"features": torch.zeros(2, 4), "logits": logits}), torch.device("cpu"))
    assert torch.allclose(back["logits"].softmax(-1), logits.softmax(-1), atol=1e-6)
    certain = pair.encode({"features": torch.zeros(1, 4), "logits": torch.tensor([[200.0, 0, 0, 0]])})
    probabilities = pair.decode(certain, torch.device("cpu"))["logits"].softmax(-1)
    assert torch.allclose(probabilities, torch.tensor([[1.0, 0, 0, 0]]), atol=1e-6)


def test_what_a_format_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="features of the teacher does not fit into float16; set teacher_storage to float32"):
        codec(storage="float16", num_classes=0).encode({"features": torch.full((1, 4), 1e5)})
    with pytest.raises(ValueError, match="features of the teacher is not finite"):
        codec(num_classes=0).encode({"features": torch.full((1, 4), float("nan"))})
    with pytest.raises(ValueError, match="teacher_storage is 'bfloat16'; allowed are float16, float32"):
        codec(storage="bfloat16")
    with pytest.raises(ValueError, match="teacher_top_k is 3, but the teacher has 3 classes"):
        codec(top_k=3)


class Counting(nn.Module):
    """Features: mean of each channel of a view, and a count of the images that were asked for."""

    def __init__(self):
        super().__init__()
        self.images = 0

    def forward(self, images):
        self.images += len(images)
        return {"features": images.mean((2, 3))}


def test_each_view_is_asked_for_once_and_the_model_is_loaded_for_what_is_missing(cache, tmp_path):
    reader, pair = ShardReader(cache[0]), OutputCodec(feature_dim=3, storage="float32")
    store = TeacherCache(tmp_path / "a", reader, row=pair.row, num_views=2, facts={})
    views = RepeatedViews(transform=SimpleTransform(size=4), repeats=2)
    model, loads = Counting().eval(), []

    def load():
        loads.append(1)
        return model

    teacher, live = CachedTeacher(store, pair, load, repeats=2), LiveTeacher(model)
    calls = [(0, range(8), 8), (2, range(8), 8), (1, range(4), 12), (0, range(6, 10), 14), (4, range(10), 14)]
    for epoch, positions, asked in calls:
        batch = reader.read(np.array(positions)) | {"epoch": epoch}
        seen = views(batch["image"], batch["id"], epoch)
        (answer,), before = teacher(seen, batch), model.images
        assert model.images == asked == teacher.misses
        (expected,) = live(seen, batch)
        model.images = before
        assert torch.allclose(answer["features"], expected["features"], atol=1e-6)
    assert len(loads) == 3 and teacher.hits == 8 + 2 + 10
