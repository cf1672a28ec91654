"""What several recipe tests need."""

from types import SimpleNamespace

import pytest
import torch

from kdnb.models.vision import build_model


@pytest.fixture
def p(make_cache, tmp_path):
    """A run on 60 images of 8x8 with a small teacher from a checkpoint."""
    make_cache(tmp_path / "cache", (20, 20, 20), size=8)
    torch.manual_seed(3)
    torch.save(build_model("cifar_resnet8", num_classes=3, width=4).state_dict(), tmp_path / "teacher.pth")
    given = {
        "dataset": "digits", "split": "train", "eval_split": None, "image_column": None, "label_column": None,
        "cache_dir": str(tmp_path / "cache"), "image_size": 8, "resize": "crop", "cache_shard_size": 20, "use_cached": True,
        "shuffle": "all", "num_workers": 0, "persistent_workers": False, "teacher": "cifar_resnet8",
        "teacher_args": {"num_classes": 3, "width": 4}, "teacher_checkpoint": str(tmp_path / "teacher.pth"),
        "student": "cifar_resnet8", "student_args": {"width": 2}, "feature_layers": [1], "student_layers": [1], "loss": "mse",
        "loss_args": None, "projection_width": None,
        "temperature": 2.0, "alpha": 1.0, "augmentation": "simple", "crop_scale_min": 0.5, "horizontal_flip": True,
        "use_local_crops": False, "local_crops_number": 2, "local_crop_size": 4, "teacher_tokens": False,
        "cache_teacher_features": False,
        "teacher_feature_dir": str(tmp_path / "outputs"), "teacher_views": 2, "teacher_storage": "float32",
        "teacher_top_k": None, "cache_on_device": "auto", "epochs": 10, "max_steps_per_epoch": 5, "batch_size": 10,
        "gradient_accumulation_steps": 1, "learning_rate": 1e-3, "weight_decay": 0.05, "warmup_steps": 2,
        "clip_grad_norm": None, "mixed_precision": "no", "compile_student": False,
        "batch_norm": "local", "seed": 0, "save_every_steps": None,
        "keep_checkpoints": 1,
    }  # fmt: skip
    return SimpleNamespace(**given)
