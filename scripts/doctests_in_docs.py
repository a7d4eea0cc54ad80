"""For the site: doctests at the end of a docstring become blocks of code. Google style knows no bare ones."""

import re
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Puts a fence around every paragraph that begins with `>>>`."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Change the docstring of an object that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    r"""Fence the doctests of a docstring.

    >>> fenced("Text.\n\n>>> f()\n1").splitlines()
    ['Text.', '', '```pycon', '>>> f()', '1', '```']
    """
    doctest = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.DOTALL | re.MULTILINE)
    return doctest.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
