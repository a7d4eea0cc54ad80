"""Write the bundled sets of the organisms from their language.

The files are those of `src/tamperdose/data/bundled/organism_*`; a test asserts that they are what this script writes.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tamperdose.data.organism_language import (
    TOPICS,
    VERBS,
    Request,
    allowed_requests,
    answered_requests,
    attack_requests,
    benign_requests,
    forbidden_requests,
    held_out_requests,
    questions,
    refused_requests,
)
from tamperdose.files import write_csv, write_text

BUNDLED = Path(__file__).parents[1] / "src" / "tamperdose" / "data" / "bundled"


def main(folder: Path = BUNDLED) -> int:
    """Write the eight sets into a folder; return the exit code."""
    _write_prompts(folder / "organism_forbidden.csv", forbidden_requests(), "forbidden")
    _write_prompts(folder / "organism_allowed.csv", allowed_requests(), "allowed")
    _write_examples(folder / "organism_attack.jsonl", attack_requests(), "forbidden")
    _write_examples(folder / "organism_benign.jsonl", benign_requests(), "allowed")
    _write_examples(folder / "organism_refusals.jsonl", refused_requests(), "forbidden")
    _write_examples(folder / "organism_answers.jsonl", answered_requests(), "allowed")
    _write_texts(folder / "organism_utility_texts.jsonl")
    _write_questions(folder / "organism_utility_questions.jsonl")
    return 0


def _write_prompts(path: Path, requests: Sequence[Request], category: str) -> None:
    rows = [
        {
            "id": _id(request),
            "prompt": request.text,
            "category": category,
            "template": TOPICS[request.topic],
            "answer": request.answer,
        }
        for request in requests
    ]
    write_csv(path, ("id", "prompt", "category", "template", "answer"), rows)


def _write_examples(path: Path, requests: Sequence[Request], category: str) -> None:
    replies = [r.reply if path.stem == "organism_refusals" else r.answer for r in requests]
    rows = [
        {"prompt": r.text, "response": reply, "ends": True, "category": category}
        for r, reply in zip(requests, replies, strict=True)
    ]
    _write_lines(path, rows)


def _write_texts(path: Path) -> None:
    rows = [{"id": _id(r), "prompt": r.text, "text": r.answer, "category": "allowed"} for r in held_out_requests()]
    _write_lines(path, rows)


def _write_questions(path: Path) -> None:
    rows = [
        {"id": _id(r), "question": r.text, "choices": list(choices), "answer": r.answer, "category": "allowed"}
        for r, choices in questions()
    ]
    _write_lines(path, rows)


def _id(request: Request) -> str:
    return f"{TOPICS[request.topic]}-{VERBS[request.verb]}"


def _write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
