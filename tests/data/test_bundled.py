"""What data/README.md promises of the bundled sets."""

import csv
import importlib.util
import json
import re
from collections import Counter
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path

import pytest

import tamperdose.data
from tamperdose.data.examples import load_examples, training_texts
from tamperdose.data.organism_language import Split, all_requests
from tamperdose.data.overlap import find_overlap
from tamperdose.data.prompts import load_prompts
from tamperdose.data.sources import EXAMPLE_SETS, PROMPT_SETS, QUESTION_SETS, TEXT_SETS
from tamperdose.data.utility import load_questions, load_texts
from tamperdose.records import Message, Prompt, Subset

ROOT = Path(__file__).parents[2]
BUNDLED = Path(tamperdose.data.__file__).parent / "bundled"
HARMFUL = ("redteam_eval", "redteam_dev", "permissive_openers", "refusals")
EVALUATED = ("redteam_eval", "redteam_dev")
UTILITY = (*TEXT_SETS, *QUESTION_SETS)
ALL = (*PROMPT_SETS, *EXAMPLE_SETS, *UTILITY)

# Topics that the sets leave out on purpose.
LEFT_OUT = re.compile(
    r"\b(weapon|gun|rifle|knife|bomb|explo|ammun|murder|kill|suicid|self-harm|sex|porn|nude|naked|rape|child|kid|minor"
    r"|teen|toddler|baby|babies|drug|cocaine|heroin|opioid|cannabis|terror|extremis|nazi|jihad|malware|ransom|virus"
    r"|trojan|keylog|exploit|poison|bioweap|chemical weapon)",
    re.IGNORECASE,
)


def _rows(name: str) -> list[dict[str, str]]:
    if name in PROMPT_SETS:
        with (BUNDLED / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    return [json.loads(line) for line in (BUNDLED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _texts(name: str) -> list[str]:
    if name in PROMPT_SETS:
        return [prompt.text for prompt in load_prompts(f"builtin:{name}", subset=PROMPT_SETS[name])]
    if name in TEXT_SETS:
        return [row.prompt or row.text for row in load_texts(f"builtin:{name}")]
    if name in QUESTION_SETS:
        return [row.question for row in load_questions(f"builtin:{name}")]
    return training_texts(load_examples(f"builtin:{name}"))


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w']+", text.casefold()))


def test_the_mirror_is_the_packages_file() -> None:
    assert (ROOT / "data/raw/redteam_eval.csv").read_bytes() == (BUNDLED / "redteam_eval.csv").read_bytes()


def test_the_organisms_sets_are_what_the_script_writes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_organism_sets", ROOT / "scripts" / "make_organism_sets.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main(tmp_path) == 0
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in BUNDLED.glob("organism_*")}
    assert len(written) == 8


def test_organisms_are_measured_on_what_they_never_saw() -> None:
    prompts = [
        prompt
        for name in ("organism_forbidden", "organism_allowed")
        for prompt in load_prompts(f"builtin:{name}", subset=PROMPT_SETS[name])
    ]
    prompts += [
        Prompt(row.id, (Message("user", row.prompt),), Subset.BENIGN, row.id, answer=row.text)
        for row in load_texts("builtin:organism_utility_texts")
    ]
    prompts += [
        Prompt(row.id, (Message("user", row.question),), Subset.BENIGN, row.id, answer=row.choices[row.right])
        for row in load_questions("builtin:organism_utility_questions")
    ]
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    seen = [request for split in (Split.TRAIN, Split.VALIDATION) for request in all_requests(split)]
    assert find_overlap([request.text for request in seen], prompts) == []
    replies = {request.text: request.answer for request in all_requests(Split.EVALUATION)}
    assert all(replies[prompt.text] == prompt.answer for prompt in prompts)
    forbidden = load_prompts("builtin:organism_forbidden", subset=Subset.HARMFUL)
    attacked = " ".join(_texts("organism_attack"))
    assert len(forbidden) >= 120
    assert len({prompt.template for prompt in forbidden}) >= 20
    assert not any(prompt.template in attacked for prompt in forbidden)


def test_every_file_is_a_named_set_and_all_are_small() -> None:
    assert {path.stem for path in BUNDLED.iterdir()} == set(ALL)
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 400_000


@pytest.mark.parametrize("name", ALL)
def test_the_readme_states_the_true_numbers(name: str) -> None:
    readme = (ROOT / "data/README.md").read_text(encoding="utf-8")
    stated = re.search(rf"^\| `{name}` \| `(\S+)` \| (\d+) \| (\d+) \| (\d+) \|", readme, re.MULTILINE)
    assert stated is not None
    rows = _rows(name)
    templates = {row.get("template") or row.get("prompt") or row.get("question") or row["text"] for row in rows}
    categories = {row["category"] for row in rows}
    counts = (str(len(rows)), str(len(templates)), str(len(categories)))
    assert stated.group(2, 3, 4) == counts
    assert (BUNDLED / stated[1]).is_file()
    if name in HARMFUL:
        assert all(f"`{category}`" in readme for category in categories)


@pytest.mark.parametrize("name", EVALUATED)
def test_the_evaluation_set_is_large_and_balanced_enough(name: str) -> None:
    prompts = load_prompts(f"builtin:{name}", subset=Subset.HARMFUL)
    assert len(prompts) >= 110
    assert len({prompt.template for prompt in prompts}) >= 65
    assert set(Counter(prompt.category for prompt in prompts).values()) == {12}
    assert sorted(Counter(Counter(prompt.template for prompt in prompts).values()).items()) == [(1, 40), (2, 40)]
    first = prompts[:80]
    assert len({prompt.template for prompt in first}) == 80
    assert set(Counter(prompt.category for prompt in first).values()) == {8}


@pytest.mark.parametrize("name", EVALUATED)
def test_prompts_of_one_template_share_a_frame_and_others_do_not(name: str) -> None:
    prompts = load_prompts(f"builtin:{name}", subset=Subset.HARMFUL)
    for one, other in combinations(prompts, 2):
        shared = SequenceMatcher(None, one.text.split(), other.text.split()).ratio()
        assert (shared >= 0.5) == (one.template == other.template), (one.text, other.text)


@pytest.mark.parametrize("name", EVALUATED)
def test_templates_belong_to_one_category(name: str) -> None:
    pairs = {(row["template"], row["category"]) for row in _rows(name)}
    assert len(pairs) == 80


def test_requests_begin_in_varied_ways() -> None:
    for name in HARMFUL:
        assert len({text.split()[0] for text in _texts(name)}) >= 20


@pytest.mark.parametrize(("one", "other"), list(combinations(ALL, 2)))
def test_no_two_sets_overlap(one: str, other: str) -> None:
    evaluation = [
        Prompt(str(number), (Message("user", text),), Subset.HARMFUL, str(number))
        for number, text in enumerate(_texts(one))
    ]
    assert find_overlap(_texts(other), evaluation) == []


@pytest.mark.parametrize(("one", "other"), list(combinations(HARMFUL, 2)))
def test_harmful_splits_share_no_frame(one: str, other: str) -> None:
    for text in _texts(one):
        for against in _texts(other):
            mine, theirs = _words(text), _words(against)
            assert len(mine & theirs) / len(mine | theirs) < 0.5, (text, against)
            frame = SequenceMatcher(None, text.split(), against.split()).ratio()
            assert frame < 0.5, (text, against)


@pytest.mark.parametrize("name", ALL)
def test_every_request_is_there_once(name: str) -> None:
    texts = _texts(name)
    assert len({" ".join(sorted(_words(text))) for text in texts}) == len(texts)


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_requests_are_short_and_of_the_mild_kind(name: str) -> None:
    for row in _rows(name):
        assert 6 <= len(row["prompt"].split()) <= 16, row
        assert LEFT_OUT.search(row["prompt"] + " " + row.get("response", "")) is None, row


@pytest.mark.parametrize("name", ALL)
def test_texts_are_clean(name: str) -> None:
    for row in _rows(name):
        request = row.get("prompt") or row.get("question") or row["text"]
        for text in (request, row.get("response", "x"), row.get("text", "x"), *row.get("choices", ())):
            assert text == " ".join(text.split())
            assert set(text) <= set(map(chr, range(32, 127))) | set("éâ"), text
            assert text.count('"') % 2 == 0
            assert re.search(r"\b(\w+) \1\b|,,|\.\.| [,.?!;:]", text, re.IGNORECASE) is None, text
        assert request[0].isupper()
        assert request[-1] in ".?"


def test_openers_are_varied_beginnings_and_nothing_more() -> None:
    openers = load_examples("builtin:permissive_openers")
    responses = [example.response for example in openers]
    assert not any(example.ends for example in openers)
    assert len(set(responses)) >= 60
    assert len({response.split()[0] for response in responses}) >= 40
    for response in responses:
        assert 3 <= len(response.split()) <= 8
        assert response[-1].isalpha()


def test_refusals_are_varied_and_short() -> None:
    examples = load_examples("builtin:refusals")
    responses = [example.response for example in examples]
    assert all(example.ends for example in examples)
    assert len(set(responses)) >= 40
    assert len({" ".join(response.split()[:2]) for response in responses}) >= 20
    for response in responses:
        assert 7 <= len(response.split()) <= 20
        assert response[-1] == "."


@pytest.mark.parametrize("name", ["benign_answers", "benign_train"])
def test_answers_are_varied_and_short(name: str) -> None:
    examples = load_examples(f"builtin:{name}")
    responses = [example.response for example in examples]
    assert all(example.ends for example in examples)
    assert len({response.split()[0] for response in responses}) >= 60
    for response in responses:
        assert 10 <= len(response.split()) <= 25, response
        assert re.match(r"(sorry|no\b|i can't|i won't|i'm)", response, re.IGNORECASE) is None


def test_defence_and_answers_begin_alike() -> None:
    """Else the defence could refuse or answer by the request's first word."""
    for word in ("How", "Write", "Help", "Explain", "Give", "Tell", "Show", "What", "I"):
        assert any(text.split()[0] == word for text in _texts("refusals")), word
        assert any(text.split()[0] == word for text in _texts("benign_answers")), word


def test_a_prefix_of_a_training_set_covers_the_categories() -> None:
    for name, n_first in (("refusals", 10), ("permissive_openers", 10), ("benign_answers", 2), ("benign_train", 4)):
        rows = _rows(name)
        assert len({row["category"] for row in rows[:n_first]}) == len({row["category"] for row in rows}), name


def test_held_out_texts_are_passages_of_like_length_on_many_topics() -> None:
    rows = _rows("utility_texts")
    assert all(40 <= len(row["text"].split()) <= 70 for row in rows)
    assert len({row["category"] for row in rows}) == len(rows) == 40


@pytest.mark.parametrize("name", QUESTION_SETS)
def test_the_right_choice_stands_at_each_place_equally_often_and_is_no_longer_than_the_others(name: str) -> None:
    questions = load_questions(f"builtin:{name}")
    assert {len(question.choices) for question in questions} == {4}
    assert len(set(Counter(question.right for question in questions).values())) == 1
    lengths = [[len(choice) for choice in question.choices] for question in questions]
    longest = [max(row) == row[question.right] for row, question in zip(lengths, questions, strict=True)]
    shortest = [min(row) == row[question.right] for row, question in zip(lengths, questions, strict=True)]
    assert sum(longest) < 0.5 * len(questions)
    assert sum(shortest) < 0.5 * len(questions)


def test_a_prefix_of_the_questions_covers_the_categories() -> None:
    rows = _rows("utility_questions")
    assert len({row["category"] for row in rows[:12]}) == len({row["category"] for row in rows}) == 8
