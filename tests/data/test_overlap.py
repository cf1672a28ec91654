"""Held-out images among training images are found by their pixels."""

import numpy as np

from kdnb.data.audit import image_digests, overlap


def test_digests_follow_the_pixels(tmp_path, make_cache):
    images = make_cache(tmp_path / "a", sizes=(10, 7))
    digests = image_digests(tmp_path / "a")
    assert len(digests) == len(images) == len(set(digests))
    make_cache(tmp_path / "b", sizes=(5,))  # the same generator: its images are the first of the other's
    other = image_digests(tmp_path / "b")
    same = [np.array_equal(a, b) for a, b in zip(images[:5].numpy(), make_cache(tmp_path / "c", sizes=(5,)).numpy(), strict=True)]
    assert overlap(other, digests) == sum(same) == 5
    assert overlap(other[:0], digests) == overlap(other, digests[:0]) == 0


def test_digests_are_kept_by_the_content_of_the_cache(tmp_path, make_cache):
    make_cache(tmp_path / "a", sizes=(6,))
    first = image_digests(tmp_path / "a", tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    np.save(kept, first[::-1])
    assert np.array_equal(image_digests(tmp_path / "a", tmp_path / "kept"), first[::-1])  # read, not computed
    make_cache(tmp_path / "a", sizes=(6, 2))
    assert len(image_digests(tmp_path / "a", tmp_path / "kept")) == 8
