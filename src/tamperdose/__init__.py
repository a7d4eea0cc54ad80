"""tamperdose: how large a dose of fine-tuning removes a language model's refusals, and how sure are we.

Importing this package loads neither a model library nor pandas; see `tamperdose.cli` for the commands and
`tamperdose.api` for the same from Python.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tamperdose.api import Run, audit_run, fit_dose, open_run, run_study, score

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "audit_run", "fit_dose", "open_run", "run_study", "score"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tamperdose' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module("tamperdose.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
