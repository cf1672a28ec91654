"""Keyed random numbers: the same for the same key, unrelated for any other."""

import numpy as np
import pytest

from kdnb.data.keyed import permutation, random_words, uniform


def test_the_bit_stream_is_fixed():
    """Recorded numbers: an upgrade that changed them would change every run."""
    assert random_words(2, 0, 3, 1).tolist() == [602579985680098625, 14866049297541541098]
    assert permutation(6, 0, 3, 1).tolist() == [4, 0, 2, 5, 3, 1]
    assert sorted(permutation(1000, 5).tolist()) == list(range(1000)) and permutation(0, 1).tolist() == []
    assert not np.array_equal(permutation(1000, 5), permutation(1000, 6))
    with pytest.raises(ValueError):
        random_words(2, -1)


def test_random_numbers_are_uniform_and_unrelated():
    u = uniform(0, 0, np.arange(20_000), 0, range(4))
    assert u.shape == (20_000, 4) and u.min() >= 0 and u.max() < 1
    for column in u.T:
        ranks = np.sort(column)
        assert np.abs(ranks - np.arange(20_000) / 20_000).max() < 1.95 / np.sqrt(20_000)  # Kolmogorov, p = 0.001
    neighbours = [u[1:, 0], uniform(0, 1, np.arange(19_999), 0, [0])[:, 0], uniform(0, 0, np.arange(19_999), 1, [0])[:, 0]]
    for other in [*neighbours, uniform(1, 0, np.arange(19_999), 0, [0])[:, 0], u[:-1, 1]]:
        assert abs(np.corrcoef(u[:-1, 0], other)[0, 1]) < 4 / np.sqrt(20_000)
