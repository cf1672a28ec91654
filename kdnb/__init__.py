"""kdnb: knowledge distillation from Jupyter notebooks.

The public names below load where they are first used, so that `import kdnb` is quick; `kdnb.api` shows how they go together.
"""

import os
from importlib import import_module
from importlib.metadata import version

# Threads of OpenMP spin at every barrier; where another process has a core, a small step then takes several times as long. So
# they soon go to sleep, unless the user says otherwise. It is read when torch is loaded, so kdnb should be imported first.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"

__version__ = version("kdnb")

_HOMES = {
    "kdnb.api": ("build_student", "distill", "evaluate", "load_teacher", "precompute"),
    "kdnb.data.datasets": ("CachedTensorDataset", "FixedShardSubsetCachedDataset", "RandomSubsetCachedDataset"),
    "kdnb.data.loader": ("build_pretraining_dataloader",),
    "kdnb.data.views": ("CleanTransform", "FastMultiCropTransform", "SimpleTransform"),
    "kdnb.evaluation.knn": ("knn_classify",),
    "kdnb.evaluation.probe": ("linear_probe",),
    "kdnb.runs": ("Run",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'kdnb' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
