"""Write the bundled sets of the organisms from their language.

The files are those of `src/tamperdose/data/bundled/organism_*`; a test asserts that they are what this script writes.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tamperdose.data.organism_language import (
    TOPICS,
    VERBS,
    Request,
    allowed_requests,
    attack_requests,
    benign_requests,
    forbidden_requests,
)
from tamperdose.files import write_csv, write_text

BUNDLED = Path(__file__).parents[1] / "src" / "tamperdose" / "data" / "bundled"


def main(folder: Path = BUNDLED) -> int:
    """Write the four sets into a folder; return the exit code."""
    _write_prompts(folder / "organism_forbidden.csv", forbidden_requests(), "forbidden")
    _write_prompts(folder / "organism_allowed.csv", allowed_requests(), "allowed")
    _write_examples(folder / "organism_attack.jsonl", attack_requests(), "forbidden")
    _write_examples(folder / "organism_benign.jsonl", benign_requests(), "allowed")
    return 0


def _write_prompts(path: Path, requests: Sequence[Request], category: str) -> None:
    rows = [
        {
            "id": f"{TOPICS[request.topic]}-{VERBS[request.verb]}",
            "prompt": request.text,
            "category": category,
            "template": TOPICS[request.topic],
            "answer": request.answer,
        }
        for request in requests
    ]
    write_csv(path, ("id", "prompt", "category", "template", "answer"), rows)


def _write_examples(path: Path, requests: Sequence[Request], category: str) -> None:
    rows = [{"prompt": r.text, "response": r.answer, "ends": True, "category": category} for r in requests]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
