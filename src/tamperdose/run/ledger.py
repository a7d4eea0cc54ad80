"""The ledger: what has been done, as files whose names are digests of everything they were made from.

An entry is a payload, `<stage>/<key><suffix>`, and a record beside it, `<stage>/<key>.json`, written last, which
holds the payload's SHA-256 and what went in. An entry counts only when its record is there and the payload's bytes
match: a run that was killed, or a file that was damaged, makes that one stage run again and nothing else.
"""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from tamperdose.errors import RunError, explain
from tamperdose.files import digest, sha256_file, write_atomic, write_json

SCHEMA = 3
"""Version of the stages' code and files: part of every key, raised when a stage's output may change."""


def stage_key(stage: str, inputs: Mapping[str, Any]) -> str:
    """Key of a stage's output: digest of the stage's name, its inputs and the schema version."""
    return digest({"stage": stage, "schema": SCHEMA, "inputs": inputs})


class Ledger:
    """A folder of finished stages."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, stage: str, key: str) -> Path | None:
        """The payload of a finished stage; None when it is not done, or its bytes are not those recorded."""
        record = self.record(stage, key)
        if record is None:
            return None
        # Only a name, so that a damaged record cannot lead out of the ledger.
        payload = self.root / stage / Path(str(record.get("payload"))).name
        if not payload.is_file() or sha256_file(payload) != record.get("sha256"):
            return None
        return payload

    def record(self, stage: str, key: str) -> dict[str, Any] | None:
        """What is known of a finished stage, even when its payload was removed on purpose."""
        try:
            record = json.loads((self.root / stage / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return record if isinstance(record, dict) and record.get("key") == key else None

    def put(
        self, stage: str, key: str, write: Callable[[Path], None], *, suffix: str, inputs: Mapping[str, Any]
    ) -> Path:
        """Have `write` make the payload, then record it.

        Raises:
            RunError: The disk is full or the folder cannot be written; finished entries are untouched.
        """
        payload = write_atomic(self.root / stage / f"{key}{suffix}", write)
        record = {"key": key, "inputs": inputs, "payload": payload.name, "sha256": sha256_file(payload)}
        write_json(self.root / stage / f"{key}.json", record)
        return payload

    def scratch(self, stage: str, key: str) -> Path:
        """A folder for work in progress, kept until `discard`."""
        return self.root / "scratch" / f"{stage}-{key}"

    @contextmanager
    def held(self, stage: str, key: str) -> Iterator[None]:
        """Hold a stage's work in progress while the block runs; waits for another process that holds it.

        Within a run there is one process for it. A second one is what a driver that was killed left behind, at work
        until it notices: entries may be written twice, a folder must not. The hold goes with the process.

        Raises:
            RunError: The folder cannot be written.
        """
        path = self.root / "scratch" / f"{stage}-{key}.lock"
        stream = _wait_for(path)
        while not _is_file_of(stream, path):
            # Removed by whoever held it, while we waited.
            stream.close()
            stream = _wait_for(path)
        with stream:
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def partial(self, stage: str, key: str) -> Path:
        """A file for what an unfinished stage has so far, kept until `discard_partial`. Never for weights."""
        return self.root / "partial" / f"{stage}-{key}.jsonl"

    def discard_partial(self) -> None:
        """Remove what unfinished stages had, once all are finished; raises as `discard` does."""
        _remove(self.root / "partial")

    def discard(self, stage: str, key: str) -> None:
        """Remove the work in progress of a finished stage.

        Raises:
            RunError: It cannot be removed. Tampered weights that stay behind must not go unnoticed.
        """
        _remove(self.scratch(stage, key))

    def discard_all(self) -> None:
        """Remove all work in progress, that of abandoned settings too; raises as `discard` does."""
        _remove(self.root / "scratch")


def _remove(folder: Path) -> None:
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise RunError(
            explain(f"cannot remove {folder}", got=error.strerror or str(error), remedy="remove it by hand")
        ) from error


def _wait_for(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a")
        fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError as error:
        raise RunError(explain(f"cannot lock {path}", got=error.strerror or str(error))) from error
    return stream


def _is_file_of(stream: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run's folder: a second driver on it is refused. The lock goes with the process, however it ends.

    Raises:
        RunError: Another process holds it, or the folder cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        stream = (run_dir / ".lock").open("a")
    except OSError as error:
        raise RunError(
            explain(
                f"cannot write to {run_dir}",
                got=error.strerror or str(error),
                expected="a folder that can be written",
                remedy="choose another folder with -o DIR",
            )
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                explain(
                    f"{run_dir} is in use",
                    got=f"another tamperdose process is running this study there{_holder(stream.name)}",
                    remedy="wait for it, or choose another folder with -o DIR",
                )
            ) from error
        with suppress(OSError):
            # For whoever is refused; a full disk is told of elsewhere.
            os.ftruncate(stream.fileno(), 0)
            os.write(stream.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def _holder(path: str) -> str:
    """Who has written its name into a lock's file; empty where nobody has."""
    try:
        said = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
    return f": {said}" if said else ""


def sweep(run_dir: Path) -> None:
    """Remove the temporary files of writes that a kill cut off; only under the lock, when nobody else is writing."""
    for path in run_dir.rglob(".*.????????.tmp"):
        path.unlink(missing_ok=True)
