"""From encoded bytes to upright RGB pixels of one size, in this process or in workers that only decode.

Imports NumPy and Pillow alone, so that a worker process starts in a tenth of a second. Cost on one core: about 0.1 ms for a
32x32 JPEG, 3 ms for a photograph of 500x375 to 224x224.
"""

import contextlib
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

RESIZE_MODES = ("crop", "squash")
MAX_PIXELS = 2**26  # of one picture: 8,192 x 8,192, for which Pillow takes 0.3 GB, with transparency 1.3 GB
Encoded = bytes | np.ndarray | Path | None
_WITH_ALPHA = ("LA", "PA", "La", "RGBA", "RGBa")


class UnreadableImage(ValueError):
    """A picture that cannot be decoded."""


def decode(encoded: Encoded) -> Image.Image:
    """The picture as upright 8-bit RGB.

    Args:
        encoded: an image file's bytes or path, or pixels as uint8 [H, W] or [H, W, 3].

    Greys, palettes and CMYK are converted, transparency lies on white, 16-bit greys are scaled (not clipped), EXIF
    orientation is applied, and of an animation the first frame counts. A JPEG of more than `MAX_PIXELS` is read at half its size.

    Raises:
        UnreadableImage: whatever the reason, with the file's name; a picture that is still larger, before it takes any memory.
    """
    if isinstance(encoded, np.ndarray):
        if encoded.dtype != np.uint8 or encoded.ndim not in (2, 3) or encoded.shape[2:] not in ((), (3,)):
            raise UnreadableImage(f"pixels are {encoded.dtype} {list(encoded.shape)}, not uint8 [H, W] or [H, W, 3]")
        if not encoded.size:
            raise UnreadableImage("the picture has no pixels")
        return Image.fromarray(encoded).convert("RGB")
    if encoded is None:
        raise UnreadableImage("the row holds no picture")
    try:
        if isinstance(encoded, Path) and not encoded.is_file():  # opening a pipe would wait for ever
            raise UnreadableImage("there is no such file")
        with encoded.open("rb") if isinstance(encoded, Path) else BytesIO(encoded) as file, Image.open(file) as image:
            _limit_pixels(image)
            image.load()
            with contextlib.suppress(Exception):  # broken metadata is no reason to lose the picture
                ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise whatever broken bytes lead them to
        reason = str(error).split(" <_io")[0] or type(error).__name__
        if isinstance(error, Image.DecompressionBombError):  # says with how many pixels, but not that fewer are too many
            reason = _too_large(int(re.findall(r"\d+", reason)[0]))
        name = f"{printable(encoded)}: " if isinstance(encoded, Path) else ""
        raise UnreadableImage(name + reason) from error


def _limit_pixels(image: Image.Image):
    """Refuse an open picture that would take too much memory; it is not decoded yet."""
    if image.width * image.height > MAX_PIXELS and "progressive" not in image.info:  # which is held whole to be read at all
        image.draft(None, (image.width // 2, image.height // 2))  # for a JPEG alone
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(_too_large(image.width * image.height))


def _too_large(pixels: int) -> str:
    return f"it has {pixels:,} pixels, more than the {MAX_PIXELS:,} that are read; make it smaller"


def printable(name: str | Path) -> str:
    """A file's name as text that can be printed: bytes that are no UTF-8 as `\\xe9`."""
    return os.fsencode(name).decode(errors="backslashreplace")


def resize(image: Image.Image, size: int, mode: str) -> np.ndarray:
    """Pixels of `image` at `size` x `size`, antialiased bicubic, uint8 [size, size, 3].

    Args:
        mode: `crop` scales the short side to `size` and keeps the centre, bitwise as torchvision's Resize and CenterCrop
            do with Pillow images; `squash` ignores the aspect ratio.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f"resize is {mode!r}; allowed are {', '.join(RESIZE_MODES)}.")
    width, height = image.size
    if mode == "squash" or width == height:
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    short = min(width, height)
    if max(width, height) > 20 * short:  # a 1 x 20,000 strip, scaled whole, would take gigabytes
        width, height = min(width, 20 * short), min(height, 20 * short)
        image = _centre(image, width, height)
    wide, high = int(size * width / short), int(size * height / short)
    return np.asarray(_centre(image.resize((wide, high), Image.Resampling.BICUBIC), size, size))


_Decoded = Generator[tuple[tuple, np.ndarray | str], None, None]


def decode_all(items: Iterable[tuple], size: int, mode: str, *, num_workers: int = 0) -> _Decoded:
    """Decode the last element of each item: yields (rest of the item, uint8 [3, size, size] or why it cannot be read).

    Order and pixels do not depend on `num_workers`. `items` is read in this process, at most a few chunks ahead.

    Raises:
        RuntimeError: a worker process was killed.
    """
    chunks = _chunks(items)
    if num_workers == 0:
        for chunk in chunks:
            for item in chunk:  # one by one, so that what was decoded is used when something stops the next
                yield item[:-1], _pixels(item[-1], size, mode)
        return
    # Spawned, not forked: a fork of a process with threads (Jupyter, PyTorch) may hang.
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _follow_parent, (os.getpid(),))
    waiting: deque = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_decode_chunk, [item[-1] for item in chunk], size, mode)))
            if len(waiting) > 3 * num_workers:
                yield from _results(*waiting.popleft())
        while waiting:
            yield from _results(*waiting.popleft())
    except BrokenProcessPool:
        raise RuntimeError(
            "a decoding process was killed, perhaps for want of memory; what was stored stays usable: "
            "run again, with a smaller num_workers."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(items: Iterable[tuple]) -> Iterator[list[tuple]]:
    """Items in lists of up to 64 or about 4 MB: enough that sending them costs little, few enough to keep a bound."""
    chunk, held = [], 0
    for item in items:
        chunk.append(item)
        held += len(item[-1]) if isinstance(item[-1], bytes) else 0
        if len(chunk) == 64 or held > 4_000_000:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _results(chunk: list[tuple], future: Future) -> Iterator[tuple[tuple, np.ndarray | str]]:
    for item, pixels in zip(chunk, future.result(), strict=True):
        yield item[:-1], pixels


def _decode_chunk(chunk: list[Encoded], size: int, mode: str) -> list[np.ndarray | str]:
    return [_pixels(encoded, size, mode) for encoded in chunk]


def _pixels(encoded: Encoded, size: int, mode: str) -> np.ndarray | str:
    try:
        return resize(decode(encoded), size, mode).transpose(2, 0, 1)
    except UnreadableImage as error:
        return str(error)


def _follow_parent(parent: int):
    """Set up a worker: leave interrupts to the parent, and end when the parent is gone, however it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="kdnb-follow-parent", daemon=True).start()


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bit(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        raise UnreadableImage("its pixels are floating-point numbers, which have no agreed range")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bit(grey: np.ndarray) -> np.ndarray:
    """uint8 of 16-bit greys (32-bit ones where they go beyond), 0 staying 0 and the largest value becoming 255."""
    top = 65535 if grey.max() <= 65535 else 2**31 - 1
    return np.rint(grey.clip(0, top) * (255.0 / top)).astype(np.uint8)
