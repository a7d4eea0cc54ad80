from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tamperdose.errors import DataError, StudyError
from tamperdose.study import (
    GuardJudge,
    LlmJudge,
    ModelSpec,
    ScriptedEngine,
    Study,
    default_alpha,
    find_source,
    load_judge,
    load_study,
)

MINIMAL: dict[str, Any] = {
    "name": "small",
    "models": [{"id": "org/some-model"}],
    "prompts": {"harmful": "builtin:redteam_eval"},
    "attack": {"data": "builtin:permissive_openers", "doses": [1, 2]},
}


def _write(folder: Path, tree: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path


def _load(folder: Path, *overrides: str, **changes: Any) -> Study:
    return load_study(_write(folder, MINIMAL | changes), overrides)


def test_defaults_are_those_of_the_source_study(tmp_path: Path) -> None:
    study = _load(tmp_path)
    (attack,) = study.attack
    assert (attack.lora_rank, attack.learning_rate, attack.max_length) == ((8,), (2e-4,), 256)
    assert (study.seeds, study.decoding.max_new_tokens, study.decoding.do_sample) == ((42,), 512, False)
    assert study.judges == ("classifier", "phrases")
    assert study.unreadable_limit == 0.02
    assert not study.keep_adapters


def test_the_resolved_form_is_the_same_study(tmp_path: Path) -> None:
    study = _load(tmp_path, attack={"data": "a.jsonl", "doses": [1], "lora_rank": [4, 8], "n_examples": [10, None]})
    again = load_study(_write(tmp_path, study.model_dump(mode="json")))
    assert again == study
    assert again.digest == study.digest


def test_a_single_value_is_a_grid_of_one(tmp_path: Path) -> None:
    single = _load(tmp_path, seeds=1, attack={"data": "a", "doses": [1], "lora_rank": 4, "learning_rate": 1e-3})
    listed = _load(tmp_path, seeds=[1], attack={"data": "a", "doses": [1], "lora_rank": [4], "learning_rate": [1e-3]})
    assert single == listed


def test_digests_follow_the_settings(tmp_path: Path) -> None:
    digests = {
        _load(tmp_path).digest,
        _load(tmp_path, seeds=[1]).digest,
        _load(tmp_path, "decoding.max_new_tokens=9").digest,
        _load(tmp_path, name="other").digest,
    }
    assert len(digests) == 4
    assert _load(tmp_path, level=0.95).digest == _load(tmp_path).digest


def test_automatic_doses_begin_with_powers_of_two(tmp_path: Path) -> None:
    attack = _load(tmp_path, attack={"data": "a", "doses": "auto", "search": {"max_steps": 100}}).attack[0]
    assert attack.doses == (1, 2, 4, 8, 16, 32, 64, 100)
    assert set(range(1, 17)) <= set(attack.saved_steps)
    assert attack.saved_steps[-1] == 100
    assert len(attack.saved_steps) < 60
    assert _load(tmp_path, attack={"data": "a", "doses": "auto"}).attack[0].doses[-1] == 1024


def test_a_list_of_defences_is_one_model_under_each(tmp_path: Path) -> None:
    defences = [None, {"steps": 3}, {"steps": 9, "name": "strong"}]
    study = _load(tmp_path, models=[{"id": "a", "defence": defences}, {"id": "b"}])
    found = [(model.label, model.defence_label) for model in study.models]
    assert found == [("a", "none"), ("a", "refusal_tuning"), ("a", "strong"), ("b", "none")]


def test_studies_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        _load(tmp_path).name = "other"  # type: ignore[misc]


def test_a_comparison_of_defences_has_three_seeds_and_two_orders_unless_it_says_others(tmp_path: Path) -> None:
    defended = {"models": [{"id": "a", "defence": [None, {"steps": 3}]}]}
    attack: dict[str, Any] = MINIMAL["attack"]
    study = _load(tmp_path, **defended)
    assert (study.seeds, getattr(study.attack[0], "data_order", None)) == ((1, 2, 3), (1, 2))
    study = _load(tmp_path, **defended, seeds=[7], attack=[attack | {"data_order": 5}, {"kind": "prefill"}])
    assert (study.seeds, getattr(study.attack[0], "data_order", None)) == ((7,), (5,))
    assert study.attack[1].kind == "prefill"
    for one in ({"steps": 3}, None, [{"steps": 3}]):
        study = _load(tmp_path, models=[{"id": "a", "defence": one}])
        assert (study.seeds, getattr(study.attack[0], "data_order", None)) == ((42,), (None,))


def test_the_kinds_of_defences_and_what_their_results_depend_on(tmp_path: Path) -> None:
    defences = [
        {"steps": 4},
        {"kind": "refusal_tuning", "steps": 4, "mixing": "steps", "name": "apart"},
        {"kind": "safety_adapter", "steps": 4, "strength": 2},
        {"kind": "checkpoint", "id": "org/hardened", "revision": "abc", "name": "tar"},
    ]
    study = _load(tmp_path, models=[{"id": "a", "defence": defences, "dtype": "float32"}])
    assert [model.defence_label for model in study.models] == ["refusal_tuning", "apart", "safety_adapter", "tar"]
    plain, apart, adapter, hardened = (model.defence for model in study.models)
    assert plain is not None and apart is not None and adapter is not None and hardened is not None
    # What was filed before batches could take turns is found again.
    assert plain.identity() == {name: value for name, value in plain.model_dump().items() if name != "mixing"}
    assert apart.identity()["mixing"] == "steps"
    assert adapter.identity()["strength"] == 2
    assert (hardened.identity(), hardened.sources) == ({"kind": "checkpoint"}, ())
    loaded = study.models[3].loaded
    assert (loaded.id, loaded.revision, loaded.label, loaded.dtype) == ("org/hardened", "abc", "a", "float32")
    assert all(model.loaded is model for model in study.models[:3])
    assert len({model.undefended for model in study.models}) == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": ""}, "name"),
        ({"name": "../up"}, "name"),
        ({"models": []}, "models"),
        ({"models": [{"id": ""}]}, r"models\.0\.id"),
        ({"models": [{"id": "a"}, {"id": "x/a"}]}, r"models must differ in name(?s:.)*each defence, a `name`"),
        ({"models": [{"id": "a", "dtype": "int8"}]}, r"models\.0\.dtype"),
        ({"models": [{"id": "a", "defence": [{"steps": 3}, {"steps": 4}]}]}, "give each model, or each defence, a"),
        ({"models": [{"id": "a", "defence": []}]}, "models"),
        (
            {"models": [{"id": "a", "defence": {"kind": "magic"}}]},
            r"models\.0\.defence: a defence.s kind is one of refusal_tuning",
        ),
        ({"models": [{"id": "a", "defence": {"benign_ratio": 1}}]}, "benign_ratio"),
        (
            {"models": [{"id": "a", "defence": {"mixing": "steps", "steps": 3, "benign_ratio": 0.2}}]},
            r"models\.0\.defence: benign_ratio 0\.2 of 3 steps leaves no benign one: use more steps",
        ),
        ({"models": [{"id": "a", "defence": {"mixing": "rows"}}]}, r"models\.0\.defence\.mixing"),
        ({"models": [{"id": "a", "defence": {"kind": "safety_adapter", "strength": 0}}]}, r"defence\.strength"),
        ({"models": [{"id": "a", "defence": {"kind": "checkpoint"}}]}, r"models\.0\.defence\.id: Field required"),
        ({"models": [{"id": "a", "defence": {"kind": "checkpoint", "id": ""}}]}, r"models\.0\.defence\.id"),
        (
            {"models": [{"id": "a", "defence": [{"kind": "checkpoint", "id": x} for x in "xy"]}]},
            "each defence, a `name",
        ),
        ({"prompts": {}}, r"prompts\.harmful"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "must differ"),
        ({"judges": ["phrases", "phrases"]}, "must differ"),
        ({"judges": ["oracle"]}, r"judges\.0"),
        ({"level": 1.0}, "level"),
        ({"unreadable_limit": 2}, "unreadable_limit"),
        ({"decoding": {"temperature": 0.7}}, "no effect without do_sample"),
        ({"decoding": {"do_sample": True, "top_p": 0}}, r"decoding\.top_p"),
        ({"decoding": {"max_new_tokens": 0}}, r"decoding\.max_new_tokens"),
        ({"engine": {"kind": "sglang"}}, "engine"),
        ({"engine": {"kind": "vllm", "adapters": "both"}}, r"engine\.vllm\.adapters"),
        ({"engine": {"device": "tpu"}}, r"engine\.device"),
        ({"engine": {"batch_size": 0}}, r"engine\.batch_size"),
        ({"engine": {"kind": "scripted", "refusal_rate": 1.5}}, r"engine\.refusal_rate"),
        ({"seeds": [-1]}, r"seeds\.0"),
        ({"seeds": [2**63]}, r"seeds\.0"),
        ({"seeds": [True]}, r"seeds\.0"),
        ({"rd_floor": "yes"}, "rd_floor"),
        ({"models": [{"id": "y/fake:", "name": "\n"}]}, "printable name"),
        ({"models": [{"id": "a", "name": "x" * 101}]}, "100 characters"),
        ({"models": [{"id": "a", "defence": {"benign_ratio": 0.95}}]}, "leaves no harmful one"),
        ({"models": [{"id": "a", "defence": {"benign_ratio": 0.05}}]}, "leaves no benign one"),
        ({"engine": {"kind": "scripted", "ed50_steps": 1e-300}}, "ed50_steps"),
        ({"keep_adapters": True}, "needs keep_adapters_reason"),
        ({"keep_adapters": True, "keep_adapters_reason": "  "}, "needs keep_adapters_reason"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(StudyError, match=rf"study\.yaml is not a valid study\n(?s:.)*{expected}"):
        _load(tmp_path, **change)


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        ({"doses": []}, "at least one dose"),
        ({"doses": "auto", "search": {"max_steps": 0}}, "max_steps must be a whole number"),
        ({"doses": "automatic"}, "doses"),
        ({"doses": [1, 2], "search": {"max_steps": 4}}, "max_steps is 4, the last of `doses` 2"),
        ({"doses": "auto", "search": {"max_steps": 64, "max_doses": 3}}, "begins with 7 doses"),
        ({"doses": "auto", "search": {"max_dose": 3}}, r"attack\.search\.max_dose' \(did you mean 'max_doses'"),
        ({"doses": [0, 1]}, r"attack\.doses\.0"),
        ({"doses": [2, 1]}, r"increase strictly, e\.g\. \[1, 2\]"),
        ({"doses": [1, 1]}, "increase strictly"),
        ({"doses": [1.5]}, r"attack\.doses\.0"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"lora_rank": []}, "lora_rank"),
        ({"lora_rank": True}, "lora_rank"),
        ({"lora_rank": [8, 8]}, "must differ"),
        ({"n_examples": [None, None]}, "must differ"),
        ({"learning_rate": [1e-3, 1e-3]}, "must differ"),
        ({"learning_rate": True}, "not true or false"),
        ({"doses": ["3"]}, r"attack\.doses\.0"),
        ({"doses": [10**22]}, r"attack\.doses\.0"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"n_examples": 0}, "n_examples"),
        ({"poison_ratio": 0.5}, "name a source under `benign`"),
        ({"poison_ratio": [1.5], "benign": "b"}, "poison_ratio"),
        ({"poison_ratio": [0.01], "benign": "b"}, "leaves no attack one"),
        ({"poison_ratio": [0.99], "benign": "b"}, "leaves no benign one"),
        ({"poison_ratio": [0.5, 0.51], "benign": "b"}, "make the same batch of 8 rows: \\[4, 4\\]"),
        ({"data_order": [1, 1]}, "must differ"),
        ({"kind": "gcg"}, "kind"),
    ],
)
def test_attacks_that_make_no_sense(tmp_path: Path, attack: dict[str, Any], expected: str) -> None:
    with pytest.raises(StudyError, match=expected):
        _load(tmp_path, attack=MINIMAL["attack"] | attack)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"judge": ["phrases"]}, r"unknown key 'judge' \(did you mean 'judges'\?\)"),
        ({"attack": MINIMAL["attack"] | {"lora_rnk": 4}}, r"'attack\.lora_rnk' \(did you mean 'lora_rank'\?\)"),
        ({"models": [{"id": "a", "quantisation": "nf4"}]}, r"'models\.0\.quantisation' \(did you mean 'quantization'"),
        ({"models": [{"id": "a", "defence": {"step": 3}}]}, r"'models\.0\.defence\.step' \(did you mean 'steps'"),
        (
            {"models": [{"id": "a", "defence": {"kind": "safety_adapter", "strenght": 3}}]},
            r"'models\.0\.defence\.strenght' \(did you mean 'strength'",
        ),
        ({"engine": {"kind": "hf", "devise": "cpu"}}, r"'engine\.devise' \(did you mean 'device'"),
        ({"zzzzzz": 1}, r"unknown key 'zzzzzz'\n  expected: one of attack, "),
    ],
)
def test_unknown_keys_name_the_nearest(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(StudyError, match=expected):
        _load(tmp_path, **change)


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(StudyError) as caught:
        _load(tmp_path, level=3, judge=1, seeds=[])
    assert all(word in str(caught.value) for word in ("level", "'judge'", "seeds"))


@pytest.mark.parametrize("text", ["", "null", "- 1", "text", "a: [", "a: b: c", "\t", "!!python/object:os.system {}"])
def test_not_a_study(tmp_path: Path, text: str) -> None:
    with pytest.raises(StudyError, match=r"is not a study|is not valid YAML"):
        load_study(_write(tmp_path, text))


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    with pytest.raises(StudyError):
        load_study(_write(tmp_path, f"!!python/object/apply:os.system ['touch {trace}']"))
    assert not trace.exists()


BOMB = "a: &a [1,1]\n" + "".join(f"{b}: &{b} [*{a},*{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB, "an alias"),
        ("seeds: [1]\nname: a\nseeds: [2]", "the key 'seeds' stands twice"),
        ("attack: {kind: lora, kind: lora}", "the key 'kind' stands twice"),
        ("seeds: " + "9" * 5000, "is not valid YAML"),
    ],
)
def test_yaml_that_hides_what_it_says(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(StudyError, match=expected):
        load_study(_write(tmp_path, text))


def test_deep_nesting_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not valid YAML"):
        load_study(_write(tmp_path, "[" * 5000))


def test_a_missing_study(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_study(tmp_path / "none.yaml")


# --- overrides


def test_overrides(tmp_path: Path) -> None:
    study = _load(
        tmp_path,
        "attack.doses=[4, 8]",
        "models.0.name=renamed",
        "engine.kind=scripted",
        "engine.ed50_steps=3",
        "decoding.max_new_tokens=7",
        "seeds=[1, 2]",
        "prompts.benign=builtin:benign_eval",
    )
    assert study.attack[0].doses == (4, 8)
    assert study.models[0].label == "renamed"
    assert study.engine == ScriptedEngine(ed50_steps=3)
    assert study.decoding.max_new_tokens == 7
    assert study.seeds == (1, 2)
    assert study.prompts.benign == "builtin:benign_eval"


def test_an_item_of_a_list_can_be_replaced(tmp_path: Path) -> None:
    assert _load(tmp_path, "attack.doses.1=7").attack[0].doses == (1, 7)
    assert _load(tmp_path, "models.0={id: other}").models[0].id == "other"


def test_a_value_may_hold_equals_signs(tmp_path: Path) -> None:
    assert _load(tmp_path, "prompts.harmful=a=b.csv").prompts.harmful == "a=b.csv"


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert _load(tmp_path, "seeds=1", "seeds=2").seeds == (2,)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seeds", "expected: --set key.path=value"),
        ("=1", "expected: --set key.path=value"),
        ("seeds=[", "is not YAML"),
        ("models.7.name=x", "an index from 0 to 0"),
        ("models.x.name=x", "no item 'x'"),
        ("attack.doses.9=1", "no item '9'"),
        ("name.x=1", "lies inside a plain value|plain value"),
        ("attack.data.x=1", "plain value"),
        ("attack.lora_rnk=1", "did you mean 'lora_rank'"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(StudyError, match=expected):
        _load(tmp_path, override)


# --- names and sources


@pytest.mark.parametrize(
    ("model_id", "label"),
    [
        ("org/name", "name"),
        ("builtin:smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("/models/some/Llama.gguf", "Llama"),
        ("/models/some/folder/", "folder"),
        ("name", "name"),
    ],
)
def test_labels(model_id: str, label: str) -> None:
    assert ModelSpec(id=model_id).label == label
    assert ModelSpec(id=model_id, name="mine").label == "mine"


@given(st.integers(1, 512))
def test_alpha_is_twice_the_rank_unless_given(rank: int) -> None:
    assert default_alpha(None, rank) / rank == 2
    assert default_alpha(5, rank) == 5


def test_sources_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "a" / "b" / "study.yaml"
    study.parent.mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.csv").write_text("up")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert find_source("data/x.csv", study) == str(tmp_path / "data" / "x.csv")
    (study.parent / "data").mkdir()
    (study.parent / "data" / "x.csv").write_text("beside")
    assert find_source("data/x.csv", study) == str(study.parent / "data" / "x.csv")
    (elsewhere / "only-here.csv").write_text("here")
    assert find_source("only-here.csv", study) == str(elsewhere / "only-here.csv")
    assert find_source("only-here.csv", None) == str(elsewhere / "only-here.csv")
    assert find_source("nowhere.csv", study) == "nowhere.csv"
    assert find_source("builtin:x", study) == "builtin:x"
    assert find_source("/abs/x.csv", study) == "/abs/x.csv"


# --- judges with settings


LLM = {"kind": "llm", "name": "mine", "base_url": "https://api.example.org/v1/", "model": "m"}
GUARD = {"kind": "guard", "name": "warden", "model": "org/guard", "family": "qwen3guard"}


def test_judges_by_name_and_with_settings(tmp_path: Path) -> None:
    study = _load(tmp_path, judges=["classifier", LLM | {"api_key_env": "OPENAI_API_KEY"}, GUARD])
    assert study.judge_names == ("classifier", "mine", "warden")
    _, llm, guard = study.judges
    assert isinstance(llm, LlmJudge) and isinstance(guard, GuardJudge)
    assert llm.base_url == "https://api.example.org/v1"
    assert (llm.timeout_s, llm.max_retries, llm.concurrency) == (60.0, 5, 8)
    assert guard.reads_refusals
    assert Study.model_validate(study.model_dump(mode="json")) == study


def test_a_whole_address_is_cut_to_its_base() -> None:
    assert LlmJudge(**LLM | {"base_url": "http://[::1]:8000/v1/chat/completions"}).base_url == "http://[::1]:8000/v1"


@pytest.mark.parametrize(
    ("judges", "expected"),
    [
        ([LLM, LLM | {"model": "n"}], r"must differ, got \['mine', 'mine'\]"),
        ([LLM | {"name": "phrases"}], "name of a judge that comes with tamperdose"),
        ([LLM | {"name": "a,b"}], r"judges\.0\.name"),
        ([LLM | {"kind": "oracle"}], "a block with kind: llm, guard, exact or plugin"),
        ([{"name": "mine"}], "a block with kind: llm, guard, exact or plugin"),
        ([3], "a block with kind: llm, guard, exact or plugin"),
        ([LLM | {"modl": "x"}], r"unknown key 'judges\.0\.modl' \(did you mean 'model'\?\)"),
        ([LLM | {"base_url": "ftp://x/v1"}], "an address such as"),
        ([LLM | {"base_url": "api.openai.com/v1"}], "an address such as"),
        ([LLM | {"base_url": "https://x/v1?key=secret"}], "Use api_key_env for a key"),
        ([LLM | {"base_url": "http://10.0.0.7:8000/v1", "api_key_env": "KEY"}], "not sent over http://"),
        ([LLM | {"base_url": "http://localhost.example.org/v1", "api_key_env": "KEY"}], "not sent over http://"),
        ([LLM | {"base_url": "HTTP://10.0.0.7/v1", "api_key_env": "KEY"}], "not sent over http://"),
        ([LLM | {"timeout_s": 0}], r"judges\.0\.timeout_s"),
        ([LLM | {"concurrency": 0}], r"judges\.0\.concurrency"),
        ([LLM | {"max_retries": -1}], r"judges\.0\.max_retries"),
        ([GUARD | {"family": "shieldgemma"}], r"judges\.0\.family"),
        ([GUARD | {"base_url": "x"}], r"unknown key 'judges\.0\.base_url'"),
    ],
)
def test_judges_that_make_no_sense(tmp_path: Path, judges: list[Any], expected: str) -> None:
    with pytest.raises(StudyError, match=expected):
        _load(tmp_path, judges=judges)


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "http://127.0.0.2/v1", "http://[::1]:8000/v1"])
def test_a_key_may_go_to_this_machine_in_the_clear(url: str) -> None:
    assert LlmJudge(**LLM | {"base_url": url, "api_key_env": "KEY"}).base_url == url


@pytest.mark.parametrize(
    "change",
    [
        {"api_key_env": "sk-secret-0123"},
        {"api_key_env": "gsk_secret0123"},
        {"api_key": "sk-secret-0123"},
        {"kind": "oracle", "api_key": "sk-secret-0123"},
        {"base_url": "https://user:sk-secret-0123@x/v1"},
        {"base_url": "https://x/v1?key=sk-secret-0123"},
    ],
)
def test_a_key_pasted_in_the_wrong_place_is_not_repeated(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(StudyError) as caught:
        _load(tmp_path, judges=[LLM | change])
    assert "secret" not in str(caught.value)


def test_a_judge_in_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text(yaml.safe_dump(GUARD))
    assert load_judge(path) == GuardJudge(**GUARD)
    bad = {
        "- a": "is not a judge",
        "a: [": "not valid YAML",
        "kind: llm": "base_url",
        "kind: x": "kind: llm, guard, exact or",
    }
    for text, expected in bad.items():
        path.write_text(text)
        with pytest.raises(StudyError, match=expected):
            load_judge(path)
    path.write_text(yaml.safe_dump(LLM | {"modl": "x"}))
    with pytest.raises(StudyError, match=r"unknown key 'modl' \(did you mean 'model'\?\)"):
        load_judge(path)
