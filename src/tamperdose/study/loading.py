"""From YAML to a study: overrides applied, defaults filled, and what is not known refused with the nearest name."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from tamperdose.errors import StudyError, explain, nearest
from tamperdose.files import read_text
from tamperdose.study.attacks import ATTACK_KINDS
from tamperdose.study.defences import DEFENCE_KINDS
from tamperdose.study.judges import ExactJudge, GuardJudge, JudgeSpec, LlmJudge, PluginJudge
from tamperdose.study.parts import Frozen, split_source
from tamperdose.study.study import Study


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, apply `key.path=value` overrides, fill defaults and validate.

    Raises:
        StudyError: Not YAML, an unknown key (with the nearest valid one), or a value out of range.
        DataError: The file is missing or not UTF-8.
    """
    try:
        raw = _read_yaml(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise StudyError(explain(f"{path} is not valid YAML", got=str(error), expected="a mapping")) from error
    if not isinstance(raw, dict):
        raise StudyError(explain(f"{path} is not a study", got=f"a YAML {type(raw).__name__}", expected="a mapping"))
    tree = cast(dict[str, Any], raw)
    for override in overrides:
        _override(tree, override)
    several = isinstance(tree.get("attack"), list)
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        raise StudyError(f"{path} is not a valid study\n" + "\n".join(_messages(error, several=several))) from error


def _read_yaml(text: str) -> Any:
    """Read YAML of plain values; a key that stands twice in one mapping and an anchor are errors.

    YAML itself would take the last of the two, and anchors can unfold a short file into gigabytes.
    """
    loader: Any = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _require_plain_nodes(node, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _require_plain_nodes(node: yaml.Node, seen: set[int]) -> None:
    if id(node) in seen:
        raise yaml.YAMLError(f"an alias (*name){node.start_mark}: write the value out")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            name = str(key.value)
            if name in keys:
                raise yaml.YAMLError(f"the key '{name}' stands twice{key.start_mark}")
            keys.add(name)
            _require_plain_nodes(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in cast("list[yaml.Node]", node.value):
            _require_plain_nodes(item, seen)


def load_judge(path: Path) -> LlmJudge | GuardJudge | ExactJudge | PluginJudge:
    """Read a YAML file that holds one judge's block, as it would stand under `judges` in a study.

    Raises:
        StudyError: Not YAML, not such a block, an unknown key, or a value out of range.
        DataError: The file is missing or not UTF-8.
    """
    try:
        block = _read_yaml(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise StudyError(explain(f"{path} is not valid YAML", got=str(error), expected="a mapping")) from error
    if not isinstance(block, dict):
        raise StudyError(explain(f"{path} is not a judge", got=f"a YAML {type(block).__name__}", expected="a mapping"))
    try:
        return _JUDGE_BLOCK.validate_python(block)
    except ValidationError as error:
        raise StudyError(f"{path} is not a valid judge\n" + "\n".join(_messages(error, _JUDGE_BLOCKS))) from error


_JUDGE_BLOCKS: tuple[type[Frozen], ...] = (LlmJudge, GuardJudge, ExactJudge, PluginJudge)
_JUDGE_BLOCK: TypeAdapter[Any] = TypeAdapter(JudgeSpec)


def find_source(source: str, study_path: Path | None) -> str:
    """Turn a study's data source into `builtin:NAME` or an absolute path, behind the name of a public set if any.

    A relative path is looked up beside the study file, then in each folder above it, then in the working
    directory, so that a study runs the same from anywhere. A path that is nowhere is returned as written.
    """
    name, path = split_source(source)
    if name:
        return f"{name}:{find_source(path, study_path)}"
    if source.startswith(("builtin:", "hf://")) or Path(source).is_absolute():
        return source
    folders = [Path.cwd()] if study_path is None else [*study_path.resolve().parents, Path.cwd()]
    for folder in folders:
        if os.path.exists(folder / source):  # noqa: PTH110 - Path's own raises for a name that is too long
            return str((folder / source).resolve())
    return source


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one `a.b.0.c=value` in the raw study; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise StudyError(explain(f"cannot read the override '{override}'", expected="--set key.path=value"))
    try:
        value = _read_yaml(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise StudyError(explain(f"the value of '{override}' is not YAML", got=str(error))) from error
    *parents, last = key.strip().split(".")
    node: Any = tree
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, dict):
        node[last] = value
    else:
        _child(node, last, override)
        node[int(last)] = value


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, dict):
        mapping = cast(dict[str, Any], node)
        if mapping.get(part) is None:
            mapping[part] = {}
        return mapping[part]
    if isinstance(node, list):
        items = cast(list[Any], node)
        if re.fullmatch("[0-9]{1,9}", part) and int(part) < len(items):
            return items[int(part)]
        raise StudyError(explain(f"'{override}': no item '{part}'", expected=f"an index from 0 to {len(items) - 1}"))
    raise StudyError(explain(f"'{override}': '{part}' lies inside a plain value", got=repr(node), expected="a mapping"))


def _messages(
    error: ValidationError, roots: Sequence[type[Frozen]] | None = None, *, several: bool = True
) -> list[str]:
    items = [dict(item) for item in error.errors(include_url=False)]
    # A broken item also makes its list "too short"; the item's own message is the useful one.
    places = [cast(tuple[str | int, ...], item["loc"]) for item in items]
    outer = {place[:depth] for place in places for depth in range(len(place))}
    told = [item for item in items if not (item["type"] == "too_short" and item["loc"] in outer)]
    return [_message(item, roots or (Study,), several=several) for item in told]


def _message(item: Mapping[str, Any], roots: Sequence[type[Frozen]], *, several: bool) -> str:
    location = _place(item["loc"], several=several)
    where = ".".join(str(part) for part in location) or "the file"
    if item["type"] == "extra_forbidden":
        valid = _fields_at(location[:-1], roots)
        return explain(
            f"unknown key '{where}'{nearest(str(location[-1]), valid)}",
            expected="one of " + ", ".join(sorted(valid)) if valid else None,
            remedy="correct or remove it",
        )
    text = str(item["msg"]).removeprefix("Value error, ")
    got = None if item["type"] == "missing" or location[-1:] in _UNSHOWN else _shorten(item["input"])
    return explain(f"{where}: {text}", got=got)


def _place(location: Sequence[str | int], *, several: bool) -> tuple[str | int, ...]:
    """Where a value stands in the file: without the names of the kinds that pydantic chose between.

    With one attack that is no list in the file (`several` false), also without its number.
    """
    parts = list(location)
    # `benign` is a kind of attack, and a key too.
    if parts[:1] == ["attack"] and parts[2:3] and parts[2] in ATTACK_KINDS:
        del parts[2]
    if parts[:1] == ["attack"] and not several:
        del parts[1:2]
    if parts[:1] == ["models"] and parts[2:3] == ["defence"] and parts[3:4] and parts[3] in DEFENCE_KINDS:
        del parts[3]
    return tuple(part for part in parts if part not in _UNION_TAGS)


_UNION_TAGS = ("hf", "scripted", "plain", "llm", "guard", "exact", "plugin")
_UNSHOWN = (("api_key_env",), ("base_url",))
"""Where a key may have been pasted by mistake: not to be repeated on a terminal or in a log."""


def _fields_at(location: Sequence[str | int], roots: Sequence[type[Frozen]]) -> list[str]:
    """The valid keys of the part of a study that lies at a location, by walking the annotations."""
    models = list(roots)
    for part in location:
        if isinstance(part, str):
            models = [
                inner
                for model in models
                if part in model.model_fields
                for inner in _models_in(model.model_fields[part].annotation)
            ]
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[Frozen]]:
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, tuple, Annotated):
        return [model for argument in get_args(annotation) for model in _models_in(argument)]
    return []


def _shorten(value: Any) -> str:
    # A mapping's values are told apart in messages of their own, and one of them may be a secret.
    text = (
        f"a mapping of {', '.join(map(str, cast(dict[Any, Any], value)))}" if isinstance(value, dict) else repr(value)
    )
    return text if len(text) <= 80 else text[:77] + "..."
