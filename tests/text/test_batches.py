"""Every row comes once an epoch, padded as each model wants it; epochs depend on seed and number only, and can be resumed."""

import numpy as np
import pytest
import torch

from kdnb.text.batches import TextLoader, pad
from kdnb.text.tokens import TokenTable


def table_of(lengths, first=1000) -> TokenTable:
    """Row i holds `lengths[i]` tokens; token k is first + k, counted through the table."""
    return TokenTable(np.arange(first, first + sum(lengths)).astype(np.int32), np.array(lengths, dtype=np.int64))


def row_of(table, row) -> list[int]:
    return table.ids[table.starts[row] :][: table.lengths[row]].tolist()


def lengths_of(n, most=60):
    return np.random.default_rng(n).integers(1, most, size=n)


def loader(n=1003, *, labelled=True, **settings) -> TextLoader:
    tables = {"text": (table_of(lengths_of(n)), 0), "teacher_text": (table_of(lengths_of(n) * 2, 9000), 7)}
    labels = torch.arange(n) % 5 if labelled else None
    return TextLoader(tables, labels, **({"batch_size": 8} | settings))


def ids(batches) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def same(first, second) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return torch.equal(first, second)


def test_padding_by_hand():
    table = table_of([1, 3, 2], first=10)  # [10], [11, 12, 13], [14, 15]
    padded = pad(table, np.array([2, 1, 0]), 99)
    assert padded["input_ids"].tolist() == [[14, 15, 99], [11, 12, 13], [10, 99, 99]]
    assert padded["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert pad(table, np.array([0]), 99)["input_ids"].tolist() == [[10]]
    assert all(tensor.dtype == torch.int64 for tensor in padded.values())


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_hold_the_tokens_of_their_rows(shuffle):
    data = loader(shuffle=shuffle)
    for batch in data.batches(1):
        rows = batch["id"].tolist()
        assert batch["label"].tolist() == [row % 5 for row in rows]
        for name, (table, pad_id) in data.tables.items():
            widest = table.lengths[rows].max()
            for row, tokens, mask in zip(rows, batch[name]["input_ids"], batch[name]["attention_mask"], strict=True):
                known = row_of(table, row)
                assert tokens.tolist() == known + [pad_id] * (widest - len(known))
                assert tokens[mask.bool()].tolist() == known and int(mask.sum()) == len(known)


@pytest.mark.parametrize("n, batch_size", [(1003, 8), (1000, 8), (5, 8), (8, 8), (1, 1), (403, 1)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_comes_once_and_sizes_are_known(n, batch_size, shuffle):
    data = loader(n, batch_size=batch_size, shuffle=shuffle)
    for epoch in (0, 3):
        got = ids(data.batches(epoch))
        assert sorted(sum(got, [])) == list(range(n))
        assert len(got) == data.num_batches(epoch)
        assert [len(batch) for batch in got] == [data.batch_size_at(epoch, number) for number in range(len(got))]
        assert all(len(batch) == batch_size for batch in got[:-1])
        assert data.num_samples(epoch) == n
        with pytest.raises(IndexError):
            data.batch_size_at(epoch, len(got))


def test_an_epoch_depends_on_seed_and_number_only():
    first = ids(loader(seed=1).batches(2))
    other = loader(seed=1, labelled=False)
    list(other.batches(0))
    assert ids(other.batches(2)) == first
    assert ids(loader(seed=2).batches(2)) != first != ids(loader(seed=1).batches(3))
    assert {frozenset(b) for b in ids(loader(seed=1).batches(3))} != {frozenset(b) for b in first}  # other company, too
    assert all("label" not in batch for batch in other.batches(0))
    plain = loader(20, shuffle=False)
    assert ids(plain.batches(0)) == ids(plain.batches(5)) == [list(range(8)), list(range(8, 16)), list(range(16, 20))]


def test_the_first_epoch_is_the_same_on_every_machine():
    data = TextLoader({"text": (table_of([4, 1, 3, 2, 6, 5, 7]), 0)}, None, batch_size=2, seed=0)
    assert ids(data.batches(0)) == [[4, 6], [0, 5], [3, 2], [1]]  # neighbours by length; row 1 was the permutation's last


@pytest.mark.parametrize("shuffle", [True, False])
def test_resuming_gives_the_remaining_batches(shuffle):
    whole = list(loader(shuffle=shuffle).batches(1))
    for start in (0, 1, 57, len(whole) - 1, len(whole)):
        rest = list(loader(shuffle=shuffle).batches(1, start))
        assert len(rest) == len(whole) - start
        assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_a_cap_ends_an_epoch_early():
    data = loader(max_steps_per_epoch=3, gradient_accumulation_steps=4)
    assert data.num_batches(0) == len(list(data.batches(0))) == 12 and data.num_samples(0) == 96
    assert ids(data.batches(0)) == ids(loader().batches(0))[:12]
    assert len(list(data.batches(0, 10))) == 2
    assert loader(20, max_steps_per_epoch=9).num_batches(0) == 3  # no more than there are
    assert loader(20, max_steps_per_epoch=9).num_samples(0) == 20
    with pytest.raises(IndexError):
        data.batch_size_at(0, 12)


def test_batches_are_of_one_length_and_come_in_any_order():
    n, size = 4000, 8
    data = loader(n, batch_size=size)
    lengths = lengths_of(n)
    means = [float(lengths[batch].mean()) for batch in ids(data.batches(0))]
    spreads = [int(np.ptp(lengths[batch])) for batch in ids(data.batches(0))]
    assert np.median(spreads) <= 3  # 59 lengths over the 50 batches of a window
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2
    # The windows are cut from the permutation: rows of the same length differ between epochs in whom they meet.
    assert len({frozenset(b) for b in ids(data.batches(0))} & {frozenset(b) for b in ids(data.batches(1))}) < 5


def test_sorting_by_length_saves_padding():
    def padding(data: TextLoader) -> float:
        masks = [batch[name]["attention_mask"] for batch in data.batches(0) for name in data.tables]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding(loader()) < 0.1 < 0.3 < padding(loader(shuffle=False))


def test_epochs_count_from_zero():
    with pytest.raises(ValueError, match="epoch is -1; epochs count from 0"):
        list(loader(30).batches(-1))


def test_a_batch_stays_what_it_was():
    data = loader(30)
    first = next(data.batches(0))
    first["id"].zero_()
    first["label"].zero_()
    assert not same(first, next(data.batches(0)))
    assert sorted(sum(ids(data.batches(0)), [])) == list(range(30))


def test_batches_go_to_the_device_but_for_their_ids():
    batch = next(loader(30, device="meta").batches(0))
    assert batch["id"].device.type == "cpu"
    assert batch["label"].device.type == batch["text"]["input_ids"].device.type == "meta"


@pytest.mark.parametrize("name", ["batch_size", "max_steps_per_epoch", "gradient_accumulation_steps"])
def test_bad_settings(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        loader(**{name: 0})


def test_tables_that_do_not_belong_together():
    table = table_of([1, 2])
    with pytest.raises(ValueError, match="text has 2, teacher_text has 3"):
        TextLoader({"text": (table, 0), "teacher_text": (table_of([1] * 3), 0)}, None, batch_size=1)
    with pytest.raises(ValueError, match="text has 2, labels has 5"):
        TextLoader({"text": (table, 0)}, torch.zeros(5, dtype=torch.int64), batch_size=1)
    with pytest.raises(ValueError, match="there is none"):
        TextLoader({}, None, batch_size=1)
