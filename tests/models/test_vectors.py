"""Embeddings kept by the digest of their text."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from studies import StubEmbedder
from tamperdose.models.vectors import CachedEmbedder


class Counting(StubEmbedder):
    """Remembers what it was asked to embed."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += texts
        return super().embed(texts)


TEXTS = ["one", "two", "three", "two", "", "\ud800 half"]


def test_vectors_are_those_of_the_encoder(tmp_path: Path) -> None:
    inner = Counting()
    cached = CachedEmbedder(inner, tmp_path)
    for texts in (TEXTS, TEXTS[::-1], ["four", *TEXTS], []):
        np.testing.assert_array_equal(cached.embed(texts), StubEmbedder().embed(texts))
    assert sorted(inner.asked) == sorted({*TEXTS, "four"})
    assert cached.identity == inner.identity


def test_a_second_process_embeds_nothing_again(tmp_path: Path) -> None:
    CachedEmbedder(Counting(), tmp_path).embed(TEXTS)
    inner = Counting()
    cached = CachedEmbedder(inner, tmp_path)
    np.testing.assert_array_equal(cached.embed(TEXTS), StubEmbedder().embed(TEXTS))
    assert inner.asked == []
    cached.embed([*TEXTS, "new"])
    assert inner.asked == ["new"]


def test_another_encoder_has_its_own(tmp_path: Path) -> None:
    CachedEmbedder(Counting(), tmp_path).embed(TEXTS)
    other = Counting()
    other.identity = "../other encoder"  # type: ignore[misc]
    CachedEmbedder(other, tmp_path).embed(TEXTS)
    assert other.asked
    assert {path.parent.parent for path in tmp_path.rglob("*.npy")} == {tmp_path}


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: data[:200] + b"x" + data[201:], lambda _: b""])
def test_a_damaged_file_is_passed_over_and_mended(tmp_path: Path, damage) -> None:
    CachedEmbedder(Counting(), tmp_path).embed(TEXTS)
    (path,) = tmp_path.rglob("*.npy")
    path.write_bytes(damage(path.read_bytes()))
    inner = Counting()
    np.testing.assert_array_equal(CachedEmbedder(inner, tmp_path).embed(TEXTS), StubEmbedder().embed(TEXTS))
    assert set(inner.asked) == set(TEXTS)
    again = Counting()
    CachedEmbedder(again, tmp_path).embed(TEXTS)
    assert again.asked == []


def test_the_files_hold_no_text(tmp_path: Path) -> None:
    CachedEmbedder(Counting(), tmp_path).embed(["a very secret sentence"])
    (path,) = tmp_path.rglob("*.npy")
    assert b"secret" not in path.read_bytes()
