"""What other installed packages add to a study: judges and attacks, offered as entry points.

A study names what is installed here; nothing that a study file brings along is run.
"""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from tamperdose.errors import StudyError, explain, nearest

PluginName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""The name of an entry point."""
PluginSettings = dict[str, JsonValue]
"""What a study hands to it, by keyword."""
Kind = Literal["judges", "attacks"]


def find_plugin(kind: Kind, name: str) -> EntryPoint:
    """Find what an installed package offers under `tamperdose.judges` or `tamperdose.attacks`; nothing is imported.

    Raises:
        StudyError: No installed package offers that name.

    >>> find_plugin("judges", "nobody_has_this")
    Traceback (most recent call last):
    tamperdose.errors.StudyError: no installed package offers the plug-in 'nobody_has_this'
      expected: an entry point of the group 'tamperdose.judges'
      remedy:   install the package that has it; docs/extending.md shows how one is made
    """
    group = f"tamperdose.{kind}"
    offered = entry_points(group=group)
    if name not in offered.names:
        raise StudyError(
            explain(
                f"no installed package offers the plug-in '{name}'{nearest(name, offered.names)}",
                got=", ".join(sorted(offered.names)) or None,
                expected=f"an entry point of the group '{group}'",
                remedy="install the package that has it; docs/extending.md shows how one is made",
            )
        )
    return offered[name]


def load_plugin(kind: Kind, name: str) -> Callable[..., Any]:
    """Import a plug-in.

    Raises:
        StudyError: There is none of that name, or it cannot be imported.
    """
    found = find_plugin(kind, name)
    try:
        return found.load()
    except (ImportError, AttributeError) as error:
        raise StudyError(explain(f"the plug-in '{name}' cannot be imported", got=str(error))) from error


def make_plugin(kind: Kind, name: str, settings: PluginSettings) -> Any:
    """Call a plug-in with a study's settings.

    Raises:
        StudyError: It cannot be had, or does not take these settings.
    """
    try:
        return load_plugin(kind, name)(**settings)
    except (TypeError, ValueError) as error:
        raise StudyError(
            explain(f"the plug-in '{name}' does not take these settings", got=f"{sorted(settings)}: {error}")
        ) from error


def plugin_origin(kind: Kind, name: str) -> str:
    """The package that offers a plug-in, and its version: part of what its results depend on.

    Raises:
        StudyError: No installed package offers that name.
    """
    dist = find_plugin(kind, name).dist
    return "unknown" if dist is None else f"{dist.name} {dist.version}"
