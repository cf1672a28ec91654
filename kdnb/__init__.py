"""kdnb: knowledge distillation from Jupyter notebooks.

The public names below load where they are first used, so that `import kdnb` is quick.
"""

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

# Threads of OpenMP spin at every barrier; where another process has a core, a small step then takes several times as long. So
# they soon go to sleep, unless the user says otherwise. It is read when torch is loaded, so kdnb should be imported first.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "2000"

import_module("kdnb.notebook_errors").register()  # does nothing outside IPython

__version__ = version("kdnb")

_HOMES = {
    "kdnb.data.datasets": ("CachedTensorDataset", "FixedShardSubsetCachedDataset", "RandomSubsetCachedDataset"),
    "kdnb.data.loader": ("build_pretraining_dataloader",),
    "kdnb.data.precompute": ("precompute",),
    "kdnb.data.views": ("CleanTransform", "FastMultiCropTransform", "SimpleTransform"),
    "kdnb.distillation.build": ("build_student",),
    "kdnb.distillation.run": ("distill",),
    "kdnb.distillation.teacher_model": ("load_teacher",),
    "kdnb.evaluation.evaluate": ("evaluate",),
    "kdnb.evaluation.knn": ("knn_classify",),
    "kdnb.evaluation.probe": ("linear_probe",),
    "kdnb.runs": ("Run",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)

if TYPE_CHECKING:  # what editors and type checkers read; a test holds it equal to _HOMES
    from kdnb.data.datasets import CachedTensorDataset as CachedTensorDataset
    from kdnb.data.datasets import FixedShardSubsetCachedDataset as FixedShardSubsetCachedDataset
    from kdnb.data.datasets import RandomSubsetCachedDataset as RandomSubsetCachedDataset
    from kdnb.data.loader import build_pretraining_dataloader as build_pretraining_dataloader
    from kdnb.data.precompute import precompute as precompute
    from kdnb.data.views import CleanTransform as CleanTransform
    from kdnb.data.views import FastMultiCropTransform as FastMultiCropTransform
    from kdnb.data.views import SimpleTransform as SimpleTransform
    from kdnb.distillation.build import build_student as build_student
    from kdnb.distillation.run import distill as distill
    from kdnb.distillation.teacher_model import load_teacher as load_teacher
    from kdnb.evaluation.evaluate import evaluate as evaluate
    from kdnb.evaluation.knn import knn_classify as knn_classify
    from kdnb.evaluation.probe import linear_probe as linear_probe
    from kdnb.runs import Run as Run
else:

    def __getattr__(name: str):
        if name not in _HOME:
            raise AttributeError(f"module 'kdnb' has no attribute {name!r}; its public names are {', '.join(__all__)}")
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
