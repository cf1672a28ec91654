"""A device without float64, such as Apple's MPS, on a machine that has none.

PyTorch's "meta" device has no numbers and no kernels, but everything that a device needs beside them. Inside
`with device_without_float64() as device:` a tensor on it has numbers, which are computed on the CPU. What MPS refuses is refused:
float64, an operation with a tensor that is elsewhere, and NumPy.
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_MOVES = (torch.ops.aten.copy_, torch.ops.aten._to_copy)


class Elsewhere(torch.Tensor):
    """A tensor on the device; `inner` holds its numbers."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError("the device does not have float64")
        facts = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), device="meta", **facts)

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    def __repr__(self):
        return f"Elsewhere({self.inner!r})"

    def __tensor_flatten__(self):  # by which Module.to knows that a parameter's class matters
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(parts, context, size, stride):
        return Elsewhere(parts["inner"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """torch.tensor does not pass through the mode above."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if function is torch.tensor else None
        made = function(*args, **kwargs)
        return made if device is None else made.to(device)


@contextlib.contextmanager
def device_without_float64():
    """See the module; what the thread does that entered it, is done on the device."""
    with _Operations(), _Constructors():
        yield torch.device("meta")


def _run(function, args, kwargs):
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    on_device = [value for value in given if isinstance(value, Elsewhere)]
    there = bool(on_device) if kwargs.get("device") is None else kwargs["device"].type == "meta"
    on_cpu = [value for value in given if not isinstance(value, Elsewhere) and value.ndim]
    if on_device and on_cpu and function.overloadpacket not in _MOVES:
        raise RuntimeError(f"{function.name()} has tensors on the device and on the CPU")
    args, inner = tree_map_only(Elsewhere, lambda value: value.inner, (args, kwargs))
    if there and inner.get("device") is not None:
        inner = inner | {"device": torch.device("cpu")}
    found = function(*args, **inner)
    known = {id(value.inner): value for value in on_device}  # what an operation in place gives back
    wrap = (lambda value: known[id(value)] if id(value) in known else Elsewhere(value)) if there else (lambda value: value)
    return tree_map_only(torch.Tensor, wrap, found)
