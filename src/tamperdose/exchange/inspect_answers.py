"""Inspect logs as recorded answers, for `score` and `audit`. Needs the extra `inspect`.

A log is taken as one state of one model: each sample a prompt with one answer, each epoch a sample of it. Whatever
does not fit that is refused with the sample's id; nothing is guessed. Logs are hostile: their texts stay texts.
"""

import contextlib
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tamperdose.data.prompts import conversation_template
from tamperdose.data.sources import excerpt
from tamperdose.errors import DataError, explain
from tamperdose.extras import require
from tamperdose.records import Message, Prompt, Subset
from tamperdose.run.score import Recording, read_samples, require_unique

MAX_BYTES = 4 << 30
"""Bytes that a log may unpack to: 10,000 answers of 100 kB and their transcripts are a quarter of it."""
_REMEDY = "export it again with Inspect, or give a CSV with columns prompt, response"
_SHOWN = 3
_PIECE, _ZIP_ZSTANDARD = 1 << 20, 93
_SURROGATES = re.compile("[\ud800-\udfff]")


def read_log(path: Path) -> Recording:
    """Read the answers to the harmful prompts of an Inspect log.

    Samples whose metadata say `subset: benign`, as in logs that `export` and `tamperdose/refusals` write, are left out;
    `template` and `category` are read from metadata where they stand. Of a message in parts the text counts, and of a
    reasoning model its answer alone.

    Raises:
        DataError: Not a whole log of a finished evaluation, no samples, samples with errors, without an answer, with
            several turns of the model or with tool calls, parts that are no text, redacted answers, or epochs that not
            every prompt has.
        ExtraError: The extra `inspect` is not installed.
    """
    require("an Inspect log", "inspect_ai", extra="inspect")
    _require_archive(path)
    log = _read(path)
    samples = log.samples or []
    if log.status != "success":
        said = "" if log.error is None else f": {excerpt(log.error.message)}"
        raise DataError(
            explain(
                f"{path} is a log of an evaluation that did not finish",
                got=f"status '{log.status}'{said}",
                expected="status 'success'",
                remedy=f"inspect eval-retry {path.name}, then give the new log",
            )
        )
    if not samples:
        raise DataError(
            explain(f"{path} holds no samples", got=f"status '{log.status}'", expected="answers to prompts")
        )
    _require_answers(path, samples)
    harmful = [sample for sample in samples if (sample.metadata or {}).get("subset") != Subset.BENIGN.value]
    if not harmful:
        raise DataError(explain(f"{path} holds no harmful prompts", got=f"{len(samples)} samples of benign ones"))
    ids = [_clean(str(sample.id)) for sample in harmful]
    numbers = read_samples(path, ids, [str(sample.epoch - 1) for sample in harmful])
    require_unique(path, ids, numbers)
    prompts = tuple(_prompt(path, sample, name) for sample, name in zip(harmful, ids, strict=True))
    return Recording(path, prompts, tuple(_answer(path, sample) for sample in harmful), True, numbers)


def _require_archive(path: Path) -> None:
    """Look at the archive's members before Inspect's reader unpacks them into memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(
            explain(f"{path} is not an Inspect log", got=str(error), expected="a .eval file", remedy=_REMEDY)
        ) from error
    names = {member.filename for member in members}
    if not names & {"header.json", "_journal/start.json"}:
        raise DataError(
            explain(
                f"{path} is an archive, but not an Inspect log",
                got=", ".join(excerpt(name, 30) for name in sorted(names)[:_SHOWN]) or "an empty archive",
                expected="header.json and samples/",
                remedy=_REMEDY,
            )
        )
    if _unpacks_to_more(path, members, MAX_BYTES):
        raise DataError(explain(f"{path} unpacks to too much", expected=f"at most {MAX_BYTES} bytes"))


def _unpacks_to_more(path: Path, members: Sequence[zipfile.ZipInfo], limit: int) -> bool:
    """Whether members unpack to more than so many bytes, by unpacking them into nothing: their sizes may be lies."""
    total = sum(member.file_size for member in members)
    if total > limit:
        return True
    total = 0
    with path.open("rb") as stream:
        for member in members:
            # The local header: 30 bytes, of which the last four say how long the name and what follows it are.
            stream.seek(member.header_offset + 26)
            stream.seek(sum(struct.unpack("<HH", stream.read(4).ljust(4, b"\0"))), io.SEEK_CUR)
            for size in _pieces(stream.read(member.compress_size), member.compress_type):
                total += size
                if total > limit:
                    return True
    return False


def _pieces(packed: bytes, kind: int) -> Iterator[int]:
    """Sizes of the pieces that a member unpacks to; what is damaged ends it, and is found when it is read."""
    if kind == zipfile.ZIP_DEFLATED:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        with contextlib.suppress(zlib.error):
            while packed and not unpacker.eof:
                yield len(unpacker.decompress(packed, _PIECE))
                packed = unpacker.unconsumed_tail
    elif kind == _ZIP_ZSTANDARD:
        from zstandard import ZstdDecompressor, ZstdError

        with contextlib.suppress(ZstdError):
            reader = ZstdDecompressor().stream_reader(packed)
            while piece := reader.read(_PIECE):
                yield len(piece)
    else:
        yield len(packed)


def _read(path: Path) -> Any:
    from inspect_ai.log import read_eval_log
    from zstandard import ZstdError

    # What Inspect's reader raises for a damaged archive or another schema: it has no error of its own for it.
    damage = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, zlib.error, ZstdError)
    try:
        return read_eval_log(str(path), resolve_attachments=True)
    except (*damage, zipfile.BadZipFile) as error:
        got = f"{type(error).__name__}: {excerpt(str(error))}"
        raise DataError(explain(f"{path} cannot be read as an Inspect log", got=got, remedy=_REMEDY)) from error


def _require_answers(path: Path, samples: Sequence[Any]) -> None:
    """Refuse samples that hold no answer of the model as it is, each kind with its own remedy."""
    kinds: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("ended in an error", lambda one: one.error is not None, f"inspect eval-retry {path.name}"),
        ("were marked as invalid", lambda one: one.invalidation is not None, f"inspect eval-retry {path.name}"),
        ("have no answer", lambda one: not one.output.choices or one.output.error, f"inspect eval-retry {path.name}"),
        (
            "were stopped by the provider's filter, so the model neither refused nor complied",
            lambda one: one.output.choices[0].stop_reason == "content_filter",
            "ask without the filter, or leave these prompts out of both logs",
        ),
        (
            "are redacted",
            lambda one: bool((one.metadata or {}).get("redacted")),
            "tamperdose export RUN --format inspect --show-text",
        ),
        ("have tool calls", lambda one: bool(one.output.message.tool_calls), "give single answers to prompts"),
        (
            "have several turns of the model",
            lambda one: _n_answers(one) > 1,
            "give single answers: the dose-response of a conversation is not defined here",
        ),
    )
    for what, is_wrong, remedy in kinds:
        wrong = [sample for sample in samples if is_wrong(sample)]
        if wrong:
            named = ", ".join(excerpt(str(sample.id), 30) for sample in wrong[:_SHOWN])
            raise DataError(
                explain(f"samples of {path} {what}", got=f"{len(wrong)} of {len(samples)}, e.g. {named}", remedy=remedy)
            )


def _n_answers(sample: Any) -> int:
    """Turns of the model behind those that it was given."""
    given = 0 if isinstance(sample.input, str) else sum(turn.role == "assistant" for turn in sample.input)
    return sum(turn.role == "assistant" for turn in sample.messages) - given


def _prompt(path: Path, sample: Any, name: str) -> Prompt:
    if isinstance(sample.input, str):
        turns = (Message("user", _clean(sample.input)),)
    else:
        turns = tuple(Message(turn.role, _text(path, sample, turn.content)) for turn in sample.input)
    roles = [turn.role for turn in turns if turn.role != "system"]
    if not roles or roles[-1] != "user" or not set(roles) <= {"user", "assistant"}:
        raise DataError(
            explain(
                f"{path}: the input of sample {excerpt(name, 30)} is not a request",
                got=", ".join(roles) or "no turns",
                expected="turns of user and assistant, the last one the user's",
            )
        )
    metadata = sample.metadata or {}
    template, category = metadata.get("template"), metadata.get("category")
    return Prompt(
        id=name,
        messages=turns,
        subset=Subset.HARMFUL,
        template=_clean(template) if isinstance(template, str) and template else conversation_template(turns),
        category=_clean(category) if isinstance(category, str) else "",
    )


def _answer(path: Path, sample: Any) -> str:
    return _text(path, sample, sample.output.message.content, answer=True)


def _text(path: Path, sample: Any, content: Any, *, answer: bool = False) -> str:
    """The text of a message; what a model thought before its answer is none of it."""
    if isinstance(content, str):
        return _clean(content)
    skipped = {"reasoning"} if answer else set[str]()
    parts = [part for part in content if part.type not in skipped]
    other = next((part.type for part in parts if part.type != "text"), None)
    if other is not None:
        raise DataError(
            explain(
                f"{path}: sample {excerpt(str(sample.id), 30)} holds more than text",
                got=f"a part of type '{other}'",
                expected="text",
            )
        )
    return _clean("\n".join(part.text for part in parts))


def _clean(text: str) -> str:
    """What UTF-8 cannot hold, and NUL, each as a sign that stands for it."""
    return _SURROGATES.sub("\ufffd", text).replace("\x00", "\u2400")
