"""What tells one model from another: a hash over its architecture's name, its arguments and every weight.

About 1 GB/s; a ViT-B takes a third of a second.
"""

import hashlib

import torch
from torch import nn


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of `model`: the same for the same weights wherever and from whatever file they were loaded."""
    inner = getattr(model, "model", model)  # a FeatureModel's timm model knows what it was built with
    seen = hashlib.sha256(f"{type(inner).__name__} {sorted(getattr(inner, 'kdnb_args', {}).items())}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        seen.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        # Viewed as bytes, because NumPy knows no bfloat16; at least one-dimensional, because a scalar has no such view.
        seen.update(torch.atleast_1d(tensor.detach().cpu().contiguous()).view(torch.uint8).numpy())
    return seen.hexdigest()
