"""Memory of batches: large tensors lie where earlier ones lay, and small arrays reach a device together."""

import math
import weakref
from threading import Lock

import numpy as np
import torch

_SMALL = 2**20  # bytes below which the C library keeps memory itself
_free: list[torch.Tensor] = []  # blocks that no tensor lies in, uint8
_taking = Lock()
# glibc gives blocks back to the system, and fetches them again, from 128 kB on, or once it has given back a larger one, from that
# one's size on, up to 32 MB (mallopt(3), M_MMAP_THRESHOLD): this one, never touched, raises the bound for all of torch.
torch.empty(31 * 2**20, dtype=torch.uint8)


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`torch.empty`, in memory that earlier tensors of this function left behind.

    The C library gives large blocks back to the system, and the first touch of each 4 kB of a new one costs a page fault: 64
    float32 images at 224x224 take 10 ms to fetch and 1 ms to fill. A block comes back when the last tensor on its memory is
    gone, slices and what autograd holds included, so that nobody's values change. No more blocks are kept than were in use at
    one time. Devices other than CPUs have an allocator of this kind in torch.

    Example:
        >>> import torch
        >>> from kdnb.data.memory import empty
        >>> first = empty((1001, 1003), torch.float32, torch.device("cpu"))
        >>> place = first.data_ptr()
        >>> del first
        >>> empty((1001, 1003), torch.float32, torch.device("cpu")).data_ptr() == place
        True
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _SMALL:
        return torch.empty(shape, dtype=dtype, device=device)
    block = _take(size)
    lease = block.numpy()[:size]  # torch holds this very array as long as a tensor lies in it
    weakref.finalize(lease, _free.append, block).atexit = False
    return torch.from_numpy(lease).view(dtype).view(shape)


def _take(size: int) -> torch.Tensor:
    """The smallest free block of at least `size` bytes; without one, a new block instead of the largest that was too small."""
    with _taking:
        sizes = [block.numel() for block in _free]
        fitting = [number for number, held in enumerate(sizes) if held >= size]
        if fitting:
            return _free.pop(min(fitting, key=sizes.__getitem__))
        if sizes:
            _free.pop(max(range(len(sizes)), key=sizes.__getitem__))
    return torch.empty(size, dtype=torch.uint8)


def upload(device: torch.device, *arrays: np.ndarray) -> list[torch.Tensor]:
    """The arrays on `device`: one copy, and on a GPU from pinned memory, so that the host does not wait for it."""
    padded = [part for a in arrays for part in (a.reshape(-1).view(np.uint8), np.zeros(-a.nbytes % 8, np.uint8))]
    host, pinned = torch.cat([torch.from_numpy(part) for part in padded]), device.type == "cuda"
    there = (host.pin_memory() if pinned else host).to(device, non_blocking=pinned)
    places = np.cumsum([0, *(-(-a.nbytes // 8) * 8 for a in arrays)]).tolist()
    pieces = ((there[place : place + a.nbytes], a) for place, a in zip(places, arrays, strict=False))
    return [piece.view(torch.from_numpy(a).dtype).view(a.shape) for piece, a in pieces]
