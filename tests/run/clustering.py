"""Drives `tamperdose run --executor ray` in a process of its own, with a stand-in for the sentence encoder.

Usage: clustering.py STUDY OUT [OPTION...]
`TAMPERDOSE_TEST` is JSON of what is done to every worker: `log` (a file that is told of every ledger entry), `pids`
(a folder in which it leaves its process's number), `seconds` (what each file of answers takes), `fail` (an error
raised by arms whose key is `arm`; `once` is a file whose being there says that it was).
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

for folder in (Path(__file__).parent, Path(__file__).parent.parent):
    sys.path.insert(0, str(folder))


def prepare() -> None:
    """What every worker does first."""
    from killing import note_entries

    from studies import use_stub_embedder

    use_stub_embedder()
    asked = json.loads(os.environ.get("TAMPERDOSE_TEST", "{}"))
    if "log" in asked:
        note_entries(Path(asked["log"]))
    if "pids" in asked:
        (Path(asked["pids"]) / str(os.getpid())).touch()
    if "seconds" in asked:
        _slow_down(asked["seconds"])
    if "fail" in asked:
        _fail(asked)


def _slow_down(seconds: float) -> None:
    from tamperdose.models.scripted import ScriptedGenerator

    generate = ScriptedGenerator.generate

    def slow(self: ScriptedGenerator, *arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return generate(self, *arguments, **options)

    ScriptedGenerator.generate = slow  # type: ignore[method-assign]


def _fail(asked: dict[str, Any]) -> None:
    from tamperdose import errors
    from tamperdose.run.backends import ScriptedBackend

    attack = ScriptedBackend.attack
    kind: type[Exception] = {"DataError": errors.DataError, "MemoryError": MemoryError}[asked["fail"]]

    def failing(self: ScriptedBackend, arm: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        once = Path(asked["once"]) if "once" in asked else None
        if arm.id == asked["arm"] and not (once and once.exists()):
            if once:
                once.touch()
            raise kind("as planned")
        return attack(self, arm, *arguments, **options)

    ScriptedBackend.attack = failing  # type: ignore[method-assign]


def main() -> None:
    import clustering
    from killing import blank
    from matplotlib.figure import Figure

    from studies import use_stub_embedder
    from tamperdose import cli
    from tamperdose.run import cluster, manifest

    use_stub_embedder()
    # The checkout may be worked on while this runs; the manifest must not tell.
    manifest.git_state = lambda _: ("0" * 40, False)
    Figure.savefig = blank  # type: ignore[assignment, method-assign]
    # By the module's name, by which workers import it.
    cluster.Cluster = partial(cluster.Cluster, prepare=clustering.prepare)  # type: ignore[misc, assignment]
    study, out, *options = sys.argv[1:]
    sys.argv = ["tamperdose", "run", study, "-o", out, "--json", "--executor", "ray", *options]
    cli.main()


if __name__ == "__main__":
    main()
