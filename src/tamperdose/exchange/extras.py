"""Packages that only an extra brings: asked for where they are needed, with the command that installs them."""

import importlib.util

from tamperdose.errors import RunError, explain


def require_package(package: str, *, extra: str) -> None:
    """Require that a package can be imported.

    Raises:
        RunError: It cannot; the message names the extra.

    >>> require_package("numpy", extra="none")
    """
    if importlib.util.find_spec(package) is None:
        raise RunError(
            explain(
                f"this needs the extra '{extra}'",
                got=f"{package.replace('_', '-')} is not installed",
                remedy=f"pip install 'tamperdose[{extra}]'",
            )
        )
