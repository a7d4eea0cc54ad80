"""Write docs/validation.md: whether judges, intervals, corrections and the audit do what they claim.

Usage:
    TAMPERDOSE_REFERENCE_DATA=DIR python -m validation [--quick] [--only PART] [-o FILE]

Each part is a module here with `section(*, quick)`, which computes its tables and returns them as Markdown. Parts that
need the labelled answers and recorded generations say so in one line where TAMPERDOSE_REFERENCE_DATA is not set.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

from tamperdose.files import write_text

PARTS = ("judges", "screening", "coverage", "dose", "scaling", "correction", "audit")
"""Modules of this folder, in the order of the page."""
INTRODUCTION = """# Validation

What the numbers of tamperdose were checked against. Made by `make validate`; every figure here is computed by the
modules in `validation/`. {mode}
"""


def main() -> int:
    """Compute every part and write the page; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few replicates and folds: to see that it runs")
    parser.add_argument("--only", choices=PARTS, help="one part alone, printed instead of written")
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/validation.md"))
    options = parser.parse_args()
    if options.only:
        print(section(options.only, quick=options.quick))
        return 0
    mode = "This is a quick run with few replicates: its figures are rough." if options.quick else ""
    parts = [section(name, quick=options.quick) for name in PARTS]
    write_text(options.out, "\n".join([INTRODUCTION.format(mode=mode).strip() + "\n", *parts]))
    print(options.out)
    return 0


def section(name: str, *, quick: bool) -> str:
    """One part of the page; how long it took goes to stderr."""
    start = time.monotonic()
    text = importlib.import_module(f"validation.{name}").section(quick=quick).strip() + "\n"
    print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    return text


if __name__ == "__main__":
    sys.exit(main())
