"""Embeddings kept on disk by the digests of their texts, so that no later process embeds them again."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tamperdose.files import write_atomic

_KEY_BYTES = 32


class Embeds(Protocol):
    """Turns texts into unit vectors; see `tamperdose.models.embed.Embedder`."""

    identity: str

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One vector per text, shape (n, d)."""
        ...


class CachedEmbedder:
    """Holds an encoder and the vectors it has given so far, in a folder of one file for every call that added any.

    A file is named by the SHA-256 of its bytes and holds no text, only digests and vectors. One whose bytes are not
    those of its name is passed over: its texts are embedded again. Files stay on disk until rows are wanted.
    """

    def __init__(self, embedder: Embeds, folder: Path) -> None:
        self._embedder = embedder
        self.identity = embedder.identity
        """The encoder's own: the cache changes no number."""
        self._folder = folder / "".join(c if c.isalnum() or c in "._-" else "_" for c in embedder.identity)
        self._files: list[NDArray[Any]] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        for path in sorted(self._folder.glob("*.npy")):
            self._open(path)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Give one vector per text, shape (n, d), embedding only texts that no file holds.

        Raises:
            RunError: New vectors cannot be written.
        """
        keys = [_key(text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._places}
        if missing:
            self._add(list(missing), self._embedder.embed(list(missing.values())))
        if not keys:
            return self._embedder.embed([])
        return self._rows(keys)

    def _rows(self, keys: Sequence[bytes]) -> NDArray[np.float32]:
        places = np.array([self._places[key] for key in keys])
        vectors = np.empty((len(keys), self._files[places[0, 0]]["vector"].shape[1]), dtype=np.float32)
        for number in np.unique(places[:, 0]):
            here = places[:, 0] == number
            vectors[here] = self._files[number]["vector"][places[here, 1]]
        return vectors

    def _add(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        rows = np.empty(len(keys), dtype=[("key", f"V{_KEY_BYTES}"), ("vector", "<f4", (vectors.shape[1],))])
        rows["key"] = np.frombuffer(b"".join(keys), dtype=f"V{_KEY_BYTES}")
        rows["vector"] = vectors
        buffer = io.BytesIO()
        np.save(buffer, rows, allow_pickle=False)
        data = buffer.getvalue()
        path = self._folder / f"{hashlib.sha256(data).hexdigest()}.npy"
        write_atomic(path, lambda to: _dump(to, data))
        self._open(path)

    def _open(self, path: Path) -> None:
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != path.stem:
                return
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        number = len(self._files)
        self._files.append(rows)
        keys = np.ascontiguousarray(rows["key"]).tobytes()
        for row in range(len(rows)):
            self._places[keys[row * _KEY_BYTES : (row + 1) * _KEY_BYTES]] = (number, row)


def _dump(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _key(text: str) -> bytes:
    # Half a surrogate pair has bytes of its own here, so that no two texts share a key.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
