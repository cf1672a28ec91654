"""Batches of tokenised texts, of about the same length within a batch, padded to its longest.

The order of an epoch is a pure function of (seed, epoch): a permutation is cut into windows of 50 batches, each window is
sorted by length and cut into batches, and the batches are shuffled. Padding then is a small share of a batch (`padding_share`),
at no cost in randomness that training would notice. Filling a batch of 64 texts takes about 0.2 ms, without a thread.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from kdnb.data.keyed import permutation
from kdnb.data.order import EpochPlan, Order, require_epoch
from kdnb.text.tokens import TokenTable

_WINDOW = 50  # batches that are sorted by length together
_SHUFFLE = 21  # a random stream apart from those of images and of choosing rows
_SIDES = ("right", "left")


class TextLoader(EpochPlan):
    """The batches of every epoch; same interface as `kdnb.data.loader.BatchReader`.

    A batch is {name: {"input_ids": int64 [B, T], "attention_mask": int64 [B, T]} for each table, with a T of its own,
    "label": int64 [B] where known, "id": int64 [B]}; all on `device`, but the ids, which are the rows and stay on the host.

    Args:
        tables: {name: (table, pad id, padding side)}, all of the same texts; lengths of the first one make the batches.
        labels: int64 [N], or None.
        shuffle: False takes the rows in their order, without regard to length.
        max_steps_per_epoch: optimizer steps, of `gradient_accumulation_steps` batches each, after which an epoch ends.

    The last batch of an epoch is short where the batch size does not divide N (its texts are chosen at random, too).

    Raises:
        ValueError: tables or labels of different numbers of rows, none at all, or a number below 1.
    """

    unit = "text"  # what training counts

    def __init__(
        self,
        tables: dict[str, tuple[TokenTable, int, str]],
        labels: torch.Tensor | None,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        max_steps_per_epoch: int | None = None,
        gradient_accumulation_steps: int = 1,
        device: str | torch.device = "cpu",
    ):
        sizes = {name: len(table) for name, (table, *_) in tables.items()}
        if labels is not None:
            sizes["labels"] = len(labels)
        if not tables or len(set(sizes.values())) > 1 or 0 in sizes.values():
            said = ", ".join(f"{name} has {size}" for name, size in sizes.items()) or "there is none"
            raise ValueError(f"tables need the same number of rows, at least one, and one for each label; {said}.")
        for name, (_, _, side) in tables.items():
            if side not in _SIDES:
                raise ValueError(f"the padding side of {name} is {side!r}; allowed are {', '.join(_SIDES)}.")
        self.num_rows = next(iter(sizes.values()))
        cap = {"max_steps_per_epoch": max_steps_per_epoch, "gradient_accumulation_steps": gradient_accumulation_steps}
        super().__init__(Order(shard_sizes=(self.num_rows,), seed=seed), batch_size=batch_size, drop_last=False, **cap)
        self.tables, self.labels, self.seed, self.shuffle = tables, labels, seed, shuffle
        self.device = torch.device(device)
        self._rows: tuple[int, np.ndarray] | None = None

    @property
    def data_fingerprint(self) -> str:
        """What tells the data: the same on every process that reads the same."""
        facts = hashlib.sha256()
        for name, (table, *_) in self.tables.items():
            facts.update(name.encode() + table.offsets.tobytes() + table.ids[:100_000].tobytes())
        return f"{facts.hexdigest()} {self.batch_size} {self.seed} {self.shuffle} {self.max_batches}"

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict]:
        """The batches of `epoch` from batch number `start` on."""
        return map(self._batch, self.local_batches(self.rows(epoch), epoch, start))

    def rows(self, epoch: int) -> np.ndarray:
        """Rows of the whole of `epoch`, before the cap, in the order of their visit; int64 [N]."""
        require_epoch(epoch)
        if self._rows is None or self._rows[0] != epoch:
            self._rows = (epoch, self._order(epoch) if self.shuffle else np.arange(self.num_rows))
        return self._rows[1]

    def padding_share(self, epoch: int) -> float:
        """Share of padding in the batches of `epoch`; what sorting by length saves is seen beside a loader without `shuffle`."""
        rows = self.rows(epoch)[: self.num_samples(epoch)]
        starts = np.arange(0, len(rows), self.batch_size)
        sizes = np.diff(starts, append=len(rows))
        tokens = [table.lengths[rows] for table, *_ in self.tables.values()]
        cells = sum(int((np.maximum.reduceat(lengths, starts) * sizes).sum()) for lengths in tokens)
        return 1 - sum(int(lengths.sum()) for lengths in tokens) / cells

    def _order(self, epoch: int) -> np.ndarray:
        shuffled = permutation(self.num_rows, self.seed, _SHUFFLE, epoch, 0)
        full = self.num_rows // self.batch_size
        rows, rest = np.split(shuffled, [full * self.batch_size])  # what does not fill a batch goes last
        lengths = next(iter(self.tables.values()))[0].lengths
        window = np.arange(len(rows)) // (_WINDOW * self.batch_size)
        batches = rows[np.lexsort((lengths[rows], window))].reshape(full, self.batch_size)
        return np.concatenate([batches[permutation(full, self.seed, _SHUFFLE, epoch, 1)].ravel(), rest])

    def _batch(self, rows: np.ndarray) -> dict:
        batch = {
            name: {key: self._send(value) for key, value in pad(table, rows, pad_id, side).items()}
            for name, (table, pad_id, side) in self.tables.items()
        }
        batch["id"] = torch.from_numpy(rows.copy())
        if self.labels is not None:
            batch["label"] = self._send(self.labels[batch["id"]])
        return batch

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cpu":
            return tensor
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def pad(table: TokenTable, rows: np.ndarray, pad_id: int, side: str) -> dict[str, torch.Tensor]:
    """Token ids of `rows` and which of them are no padding, both int64 [B, length of the longest]."""
    lengths = table.lengths[rows]
    width, total = int(lengths.max()), int(lengths.sum())
    columns = np.arange(width)
    mask = columns < lengths[:, None] if side == "right" else columns >= width - lengths[:, None]
    first = np.cumsum(lengths) - lengths  # of each text, among the tokens of the batch
    taken = np.arange(total) + np.repeat(table.offsets[rows] - first, lengths)
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = table.ids[taken]
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
