"""The judge kind `plugin`: a judge of another installed package, held to what every judge must give."""

from collections.abc import Sequence

from tamperdose.errors import JudgeError, explain
from tamperdose.files import digest
from tamperdose.judges.judge import Reading
from tamperdose.records import Label
from tamperdose.study import PluginJudge as Settings
from tamperdose.study.plugins import make_plugin


class PluginJudge:
    """A plug-in's judge under the study's name; its version holds the settings, so that verdicts are never mixed."""

    def __init__(self, settings: Settings) -> None:
        self._judge = make_plugin("judges", settings.plugin, settings.settings)
        self.name = settings.name
        made = {"plugin": settings.plugin, "settings": settings.settings}
        self.version = f"{self._judge.version}-{digest(made)}"

    def read(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Reading]:
        """Read each response; see `Judge.read`.

        Raises:
            JudgeError: The plug-in gave something else than one reading for each response.
            ValueError: The two sequences differ in length.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts, {len(responses)} responses")
        readings = list(self._judge.read(prompts, responses))
        wrong = next((reading for reading in readings if not _is_reading(reading)), None)
        if wrong is not None or len(readings) != len(responses):
            got = f"{len(readings)} for {len(responses)} responses" if wrong is None else repr(wrong)[:80]
            expected = "one Reading for each response, p_refusal in [0, 1], None where UNREADABLE"
            raise JudgeError(explain(f"the judge '{self.name}' reads wrongly", got=got, expected=expected))
        return readings


def _is_reading(reading: object) -> bool:
    if not isinstance(reading, Reading) or not isinstance(reading.label, Label):
        return False
    if reading.label is Label.UNREADABLE:
        return reading.p_refusal is None
    return reading.p_refusal is not None and 0 <= reading.p_refusal <= 1
