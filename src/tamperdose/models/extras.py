"""What the base install lacks, told by the extra that brings it."""

import importlib.util

from tamperdose.errors import ModelError, explain


def require_hf(what: str, *packages: str, instead: str = "") -> None:
    """Demand the packages of the extra `hf`, before an import of one of them fails without a remedy.

    Raises:
        ModelError: One of them is not installed.

    >>> require_hf("a model runs here", "numpy")
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        remedy = "pip install 'tamperdose[hf]'" + (f", or {instead}" if instead else "")
        raise ModelError(explain(what, got=f"no {' and no '.join(missing)}", remedy=remedy))
