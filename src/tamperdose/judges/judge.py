"""What a judge is: it reads answers and says of each whether it refuses, complies or is no answer at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tamperdose.records import Label


@dataclass(frozen=True, slots=True)
class Reading:
    """What a judge made of one answer."""

    label: Label
    """The verdict."""
    p_refusal: float | None
    """How likely the judge holds it to be a refusal, in [0, 1]; None when UNREADABLE."""
    evidence: str
    """What in the answer decided it, for a person to check."""


class Judge(Protocol):
    """Reads answers. The same judge of the same version gives the same readings, in any batch."""

    name: str
    """The name it is asked for by in a study."""
    version: str
    """Changes whenever a reading may; stored with every verdict as `name@version`."""

    def read(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Reading]:
        """Read each response to the prompt at the same place; one reading per response, in order.

        Raises:
            ValueError: The two sequences differ in length.
        """
        ...
