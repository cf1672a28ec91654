"""The tour measures every way it is given, and says which one this machine lacks."""

import os

import pytest

from kdnb.distillation import tour
from kdnb.distributed import Preempted


def test_every_way_is_measured_on_the_same_images(p):
    p.image_size, p.cache_shard_size = 8, 20
    ways = {name: changes for name, changes in tour.WAYS.items() if "compile_student" not in changes}
    found = tour.take_tour(p, steps=3, rounds=2, ways=ways)
    assert list(found) == list(ways) and len(found) == 5
    for row in found.values():
        assert row["step_ms"] > 0 and row["wait_ms"] >= 0
        assert row["images_per_s"] == pytest.approx(1000 * p.batch_size / (row["step_ms"] + row["wait_ms"]))
    assert "KDNB_PROGRESS" not in os.environ or os.environ["KDNB_PROGRESS"] != "none"


def test_a_way_that_the_machine_lacks_is_left_out_with_a_line(p, monkeypatch, capsys):
    real = tour.distill_parameters

    def without_compiler(p, run):
        if p.compile_student:
            raise RuntimeError("no C++ compiler was found\nand more")
        return real(p, run)

    def interrupt():
        raise Preempted("interrupted")

    monkeypatch.setattr(tour, "distill_parameters", without_compiler)
    found = tour.take_tour(p, steps=2, rounds=1, ways={"plain": {}, "compiled": {"compile_student": True}})
    assert list(found) == ["plain"] and capsys.readouterr().out == "compiled: not here (no C++ compiler was found)\n"
    monkeypatch.setattr(tour, "distill_parameters", lambda *a: interrupt())
    with pytest.raises(Preempted):  # which is no lack
        tour.take_tour(p, steps=2, rounds=1, ways={"compiled": {"compile_student": True}})
    monkeypatch.setattr(tour, "distill_parameters", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tour.take_tour(p, steps=2, rounds=1, ways={"plain": {}})


def test_a_way_that_the_student_cannot_go_does_not_cost_the_run(p, capsys):
    """A ViT of a fixed image size sees no small crops."""
    p.student, p.student_args = "vit_tiny_patch16_224", {"img_size": 8, "patch_size": 4, "depth": 1}
    p.student_layers = p.feature_layers = []
    names = ["shards", "shards, DINO global + local crops"]
    found = tour.take_tour(p, steps=2, rounds=1, ways={name: tour.WAYS[name] for name in names})
    assert list(found) == ["shards"]
    assert "local crops: not here (student: VisionTransformer takes images of 8 pixels" in capsys.readouterr().out


def test_of_a_streamed_data_set_no_raw_images_are_fetched(p, capsys):
    p.dataset, p.streaming = "owner/pictures", True
    found = tour.take_tour(p, steps=2, rounds=1, ways={name: tour.WAYS[name] for name in ("raw images", "shards")})
    assert list(found) == ["shards"] and capsys.readouterr().out == "raw images: not here (owner/pictures is streamed)\n"
