"""Decode images once, into shards that training reads.

Shard k holds positions k * cache_shard_size and following of a seeded permutation of the source, so that any few shards are a
fair sample of its classes: folders are sorted by class. A stream comes in its own order. A run that was killed at any moment
goes on where it stopped, and ends with the bytes that an undisturbed run gives. Cost: decoding, about 0.1 ms for a 32x32 JPEG
and 3 ms for a photograph at 224x224, divided by `num_workers`; memory of about three shards.
"""

import contextlib
from pathlib import Path
from types import SimpleNamespace

from kdnb import distributed
from kdnb.data.cache_writer import CacheWriter, check_parts, only_writer
from kdnb.data.sources import open_source_of
from kdnb.params import TABLE, arguments_of, checked
from kdnb.progress import Display
from kdnb.runs import anchored


def precompute(
    dataset,
    cache_dir: str | Path,
    *,
    split: str = "train",
    image_size: int = 224,
    cache_shard_size: int = 2048,
    max_samples: int | None = None,
    storage: str = "uint8",
    resize: str = "crop",
    permutation_seed: int | None = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    held_out: float = 0.0,
    num_workers: int = 0,
    on_unreadable: str = "skip",
    verify: bool = False,
    part: int = 0,
    parts: int | None = None,
    progress=True,
) -> Path:
    """Decode every image of `dataset` once, into memory-mapped shards in `cache_dir`, or go on doing so.

    Args:
        dataset: `digits` (built in), a folder of images, Parquet, or a data set on the Hub, of which `split`, `image_column`,
            `label_column`, `streaming` and `held_out` say more (see `kdnb.data.sources.open_source`); or a source that is open
            already. A cache that was begun goes on with the share that it was begun with.
        image_size, resize: side of the stored squares in pixels, and how an image becomes one: `crop` scales its short side and
            keeps the centre, `squash` ignores its aspect ratio.
        cache_shard_size: images a shard. max_samples: images to store, None for all; a larger number later extends the cache.
        storage: `uint8` loses nothing; `float32` and `float16` hold images normalised with ImageNet's mean and std.
        permutation_seed: store the source in a random order, the same for the same seed; None keeps its order. The default, 0,
            goes on in whatever order `cache_dir` holds already, and stores a stream as it comes (with a printed line).
        num_workers: processes that decode; 0 decodes in this one. The bytes do not depend on it.
        on_unreadable: `skip` leaves out images that cannot be decoded, logs them and lists their ids in the index;
            `refuse` stops at the first.
        verify: compare the checksums of all stored shards and make altered ones again; sizes are always compared.
        part, parts: make only every `parts`-th shard, from number `part` on; other jobs make the others, at any time and on
            any machine that shares the folder, and the last one writes the index. None: the processes of this run share them.
        progress: True shows a bar, or lines; False nothing. Or an object with `update(done, total=, bytes_written=)`.

    Returns:
        The cache's folder, which `distill` and the data sets take: images_shard_00000.pt ... with "images" [N, 3, H, W], "ids"
        and "labels" int64 [N], and index.json.

    Raises:
        ValueError: a parameter out of range, an empty source, or a cache that was made from another source or with
            other preprocessing. UnreadableImage: see `on_unreadable`. CacheError: a disk that is full, or a folder that
            cannot be written; the shards stored so far stay usable.

    Example:
        >>> import tempfile
        >>> cache = precompute("digits", tempfile.mkdtemp(), image_size=16, max_samples=100, progress=False)
        >>> sorted(path.name for path in cache.iterdir())
        ['images_shard_00000.pt', 'index.json']
    """
    arguments = {name: value for name, value in locals().items() if name in TABLE["precompute"] and name != "dataset"}
    p, folder = SimpleNamespace(**checked(arguments, "precompute")), anchored(cache_dir)
    if parts is None:
        p.part, p.parts = distributed.rank(), distributed.world()
    check_parts(folder, p.part, p.parts)
    source = dataset if hasattr(dataset, "items") else open_source_of(folder, dataset, **arguments_of(open_source_of, p))
    if source.num_images is None and p.permutation_seed:
        seed = f"permutation_seed is {p.permutation_seed}"
        raise ValueError(f"{seed}, but {source.name} is streamed in its own order; leave it out.")
    if source.num_images is None and p.parts > 1:
        raise ValueError(
            f"parts is {p.parts}, but {source.name} is streamed, and its shards are made in turn, by one job; leave parts out "
            "(no array of jobs, no several ranks), or set streaming to false."
        )
    with contextlib.ExitStack() as held:
        if progress is True:
            progress = held.enter_context(Display(p.max_samples or source.num_images, title="precompute", unit="image"))
        held.enter_context(only_writer(folder, p.part, p.parts))
        cache = CacheWriter(source, folder, **arguments_of(CacheWriter, p))
        cache.fill(progress or None, num_workers=p.num_workers, on_unreadable=p.on_unreadable)
    if p.parts == 1 and not any(entry["rows"] for entry in cache.entries.values()):
        none = "none of which could be read; the log says why" if cache.total else "so there is nothing to store"
        raise ValueError(f"{source.name} holds {cache.total} images, {none}.")
    if parts is None:
        distributed.barrier()
    return folder
