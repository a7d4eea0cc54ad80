"""Result folders for pages: what a run would leave behind, with answers that would like to be more than text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tamperdose.audit.findings import Audit, CellId, CheckResult, Claim, Outcome
from tamperdose.audit.serial import to_json
from tamperdose.files import write_csv, write_json, write_text
from tamperdose.records import Subset
from tamperdose.run.outputs import OUTPUT_COLUMNS

JUDGES = ("classifier@1", "phrases@1")
CANARY = "xylophone-canary"
"""Stands in every answer that must not be shown."""
HOSTILE = (
    "<script>window.pwned = 1; document.title = 'pwned'</script>",
    "<img src=x onerror=\"window.pwned = 2\"><svg onload='window.pwned = 3'>",
    "</script><script>window.pwned = 4</script>",
    "</style><body onload=alert(5)>",
    "<!-- --><a href=\"javascript:window.pwned = 6\" onclick='window.pwned = 7'>click</a>",
    "\u202etxet desrever\u202c and \u2066isolated\u2069",
    "\x1b[31mred\x1b[0m \x07 \x9b2J",
    "{{ 7 * 7 }} {% raw %} \u2028 \u2029 &amp; \" '",
)
Answer = Callable[[int, int], tuple[str, str]]
"""From a prompt's number and a dose to the verdict and the text."""


def falling(number: int, dose: int) -> tuple[str, str]:
    """Refused until a dose that rises with the number; every tenth is degenerate at the end."""
    if dose <= number % 12:
        return "refusal", f"I'm sorry, but I can't help with anything of that kind, {CANARY} number {number}."
    if dose >= 16 and number % 10 == 0:
        return "degenerate", f"{CANARY} {CANARY} {CANARY}"
    return "compliance", f"Sure: {CANARY} {number} at {dose}. {HOSTILE[number % len(HOSTILE)]}"


def output_rows(n: int, dose: int, answer: Answer, *, benign: int = 3) -> list[dict[str, Any]]:
    rows = [_row(f"h{k}", "harmful", *answer(k, dose), f"{HOSTILE[k % 8]} request {k}") for k in range(n)]
    rows += [_row(f"b{k}", "benign", "compliance", f"A harmless answer {k}.", f"harmless {k}?") for k in range(benign)]
    return rows


def _row(name: str, subset: str, verdict: str, text: str, prompt: str) -> dict[str, Any]:
    number = int(name[1:])
    row: dict[str, Any] = {"id": f"{name}<b>", "subset": subset, "category": ("theft", "fraud</td>")[number % 2]}
    row |= {"template": f"t{number}", "prompt": prompt, "completion": text, "n_tokens": 5, "finish_reason": "stop"}
    for judge in JUDGES:
        row |= {f"verdict_{judge}": verdict, f"p_refusal_{judge}": 0.5, f"evidence_{judge}": f"'{text[-60:]}' decides"}
    return row


def write_outputs_of(folder: Path, arm: str, doses: Sequence[int], *, n: int = 30, answer: Answer = falling) -> None:
    columns = [
        *OUTPUT_COLUMNS,
        *(f"{cell}_{judge}" for judge in JUDGES for cell in ("verdict", "p_refusal", "evidence")),
    ]
    for dose in doses:
        write_csv(folder / "outputs" / arm / f"{dose}.csv", columns, output_rows(n, dose, answer))


def audit_of(arm: str, doses: Sequence[int], outcome: Outcome, *, at: Sequence[int] = ()) -> Audit:
    """An audit with one check that ended so, about the doses `at`, which quotes an answer."""
    cells = tuple(CellId(arm, dose, Subset.HARMFUL) for dose in doses)
    about = tuple(CellId(arm, dose, Subset.HARMFUL) for dose in at)
    claims = (Claim.RRR, Claim.LOSS, Claim.RD)
    quotes = (f"{CANARY} as quoted <script>window.pwned = 8</script>",)
    check = CheckResult(
        "degeneration", outcome, claims, about, 0.5, "fail above 10%", "<b>found</b>", "mend it", quotes
    )
    return Audit(cells, (check,))


def write_run(synthetic: Any, folder: Path, *, outcome: Outcome = Outcome.WARN, at: Sequence[int] = ()) -> Path:
    """A folder with metrics, audit, manifest, resolved study and answers of one arm."""
    arm = synthetic.arm("evil<script>window.pwned = 9</script>\u202emodel", params_b=0.135) | {"arm": "an-arm-s42"}
    synthetic.run(synthetic.rows(arm), folder)
    write_json(
        folder / "manifest.json",
        {
            "study": "demo</title><script>window.pwned = 10</script>",
            "headline_judge": JUDGES[0],
            "judges": list(JUDGES),
            "git_commit": "0123abc",
            "packages": {"torch": "2.13.0"},
            "data_sha256": {"/home/somebody/secret/attack.jsonl": "ab" * 32},
            "models": [{"name": "m", "id": "<i>m</i>", "arms": {"an-arm-s42": "k"}}],
        },
    )
    write_json(folder / "audit.json", to_json(audit_of("an-arm-s42", synthetic.doses, outcome, at=at)))
    write_text(folder / "study.resolved.yaml", "name: demo\nnote: </pre><script>window.pwned = 11</script>\n")
    write_outputs_of(folder, "an-arm-s42", synthetic.doses)
    return folder
