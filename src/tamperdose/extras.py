"""Packages that only an extra brings: asked for where they are needed, with the command that installs them."""

import importlib.util

from tamperdose.errors import ExtraError, explain


def require(what: str, *packages: str, extra: str, instead: str = "") -> None:
    """Require packages before an import of one of them fails without a remedy.

    Args:
        what: What needs them, in words.
        packages: As they are imported. They are looked for and not imported.
        extra: The extra that brings them.
        instead: What else can be done.

    Raises:
        ExtraError: One of them is not installed; the message names the extra.

    >>> require("a table of numbers", "numpy", extra="none")
    """
    missing = [package.replace("_", "-") for package in packages if not _is_installed(package)]
    if missing:
        remedy = f"pip install 'tamperdose[{extra}]'" + (f", or {instead}" if instead else "")
        raise ExtraError(
            explain(f"{what} needs the extra '{extra}'", got=f"no {' and no '.join(missing)}", remedy=remedy)
        )


def _is_installed(package: str) -> bool:
    """Whether it is there; a mere folder of its name, which Python would import as an empty package, is not it."""
    spec = importlib.util.find_spec(package)
    is_folder = getattr(spec, "origin", None) is None and getattr(spec, "submodule_search_locations", None) is not None
    return spec is not None and not is_folder
