"""Runs a study over and over in child processes, each killed with SIGKILL at its own point, then to its end.

A program of its own: it imports everything once and forks a child for every run. A point is the n-th renaming of a
finished file, just before it or just after. Tells of each point in a line of JSON on stderr.

Usage: killing.py STUDY FOLDER FIGURES POINT...
FIGURES is `drawn` or `blank` (drawing takes half of a tiny run's time); POINT is before:N or after:N, N counted from
the end when negative. FOLDER/whole is made first, uninterrupted.
"""

import json
import os
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))


def main(study: Path, folder: Path, figures: str, points: list[str]) -> None:
    import torch
    from matplotlib.figure import Figure

    from studies import use_stub_embedder
    from tamperdose.run import manifest

    torch.set_num_threads(1)
    use_stub_embedder()
    # The checkout may be worked on while this runs; the manifest must not tell.
    manifest.git_state = lambda _: ("0" * 40, False)
    if figures == "blank":
        Figure.savefig = blank  # type: ignore[assignment, method-assign]
    # In this process: whatever the run imports, the children then have at once.
    replace = Path.replace
    renames = _kill_at("none", folder / "whole.log")
    _tamperdose(study, folder / "whole")
    Path.replace, count = replace, renames[0]  # type: ignore[method-assign]
    _tell({"point": "none", "renames": count})
    for point in points:
        when, _, number = point.partition(":")
        # Negative numbers count from the end.
        place = int(number) if int(number) > 0 else count + 1 + int(number)
        out, log = folder / point.replace(":", "-"), folder / f"{point.replace(':', '-')}.log"
        killed = _run(study, out, f"{when}:{place}", log)
        resumed = _run(study, out, "none", log)
        done = Counter(tuple(line.split()) for line in log.read_text().splitlines()) if log.exists() else Counter()
        twice = [" ".join(stage) for stage, times in done.items() if times > 1 and stage[0] != "dose"]
        _tell({"point": point, "killed": killed, "resumed": resumed, "twice": twice})


def blank(_: Any, target: Any, **__: Any) -> None:
    """In place of drawing: a file or a stream that holds no picture."""
    if hasattr(target, "write"):
        target.write(b"blank")
    else:
        Path(target).write_bytes(b"blank")


def _tell(entry: dict[str, Any]) -> None:
    sys.stderr.write(json.dumps(entry) + "\n")
    sys.stderr.flush()


def _tamperdose(study: Path, out: Path) -> None:
    from tamperdose import cli

    sys.argv = ["tamperdose", "run", str(study), "-o", str(out), "--json"]
    cli.app(standalone_mode=False)


def _run(study: Path, out: Path, point: str, log: Path) -> dict[str, Any]:
    """One run in a child, and the signal and exit code it ended with."""
    child = os.fork()
    if child == 0:
        _child(study, out, point, log)
    _, status = os.waitpid(child, 0)
    return {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"code": os.WEXITSTATUS(status)}


def _child(study: Path, out: Path, point: str, log: Path) -> None:
    """Run and leave with os._exit, whatever happens."""
    code = 1
    try:
        _kill_at(point, log)
        _tamperdose(study, out)
        code = 0
    except BaseException:  # noqa: BLE001 - a child's last words
        traceback.print_exc()
    finally:
        os._exit(code)


def note_entries(log: Path) -> None:
    """Note every ledger entry of this process as its record is finished."""
    _kill_at("none", log)


def _kill_at(point: str, log: Path) -> list[int]:
    """Count renames, kill at the wanted one, and note every ledger entry as its record is finished."""
    when, _, number = point.partition(":")
    replace, renames = Path.replace, [0]

    def counted(path: Path, target: Path) -> Path:
        renames[0] += 1
        if when == "before" and renames[0] == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        done = replace(path, target)
        if target.suffix == ".json" and target.parent.parent.name == "ledger":
            with log.open("a") as stream:
                stream.write(f"{target.parent.name} {target.stem}\n")
        if when == "after" and renames[0] == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    Path.replace = counted  # type: ignore[assignment, method-assign]
    return renames


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
