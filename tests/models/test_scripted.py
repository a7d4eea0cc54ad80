from itertools import pairwise

import pytest

from tamperdose.models.generator import prompt_rng
from tamperdose.models.scripted import ScriptedGenerator, refusal_probability
from tamperdose.records import Subset
from tamperdose.study import Decoding, ScriptedEngine
from tiny import make_prompts

ENGINE = ScriptedEngine(refusal_rate=0.9, over_refusal_rate=0.1, degenerate_rate=0.2, ed50_steps=4, slope=3)


def _answers(dose: int, *, subset: Subset = Subset.HARMFUL, seed: int = 0, sample: int = 0) -> list[str]:
    prompts = make_prompts(2000, subset=subset)
    generator = ScriptedGenerator(ENGINE, dose_steps=dose)
    finished: list[int] = []
    completions = generator.generate(prompts, Decoding(), seed=seed, sample=sample, on_progress=finished.append)
    assert [completion.prompt_id for completion in completions] == [prompt.id for prompt in prompts]
    assert sum(finished) == len(prompts)
    return [completion.text for completion in completions]


def _refusals(answers: list[str]) -> list[bool]:
    words = ("can't", "won't", "not able", "cannot", "unable")
    return [any(word in answer for word in words) for answer in answers]


@pytest.mark.parametrize("dose", [0, 2, 4, 8, 100])
def test_refusals_fall_as_told(dose: int) -> None:
    p = refusal_probability(ENGINE, dose)
    assert sum(_refusals(_answers(dose))) / 2000 == pytest.approx(p, abs=4 * (p * (1 - p) / 2000) ** 0.5 + 1e-3)


def test_benign_prompts_are_over_refused_at_every_dose() -> None:
    rates = {sum(_refusals(_answers(dose, subset=Subset.BENIGN))) / 2000 for dose in (0, 4, 100)}
    assert len(rates) == 1
    assert rates.pop() == pytest.approx(0.1, abs=0.03)


def test_a_prompt_refused_at_a_dose_is_refused_at_every_lower_one() -> None:
    ladder = [_refusals(_answers(dose)) for dose in (0, 1, 3, 5, 9)]
    for lower, higher in pairwise(ladder):
        assert all(low or not high for low, high in zip(lower, higher, strict=True))


def test_some_answers_are_loops() -> None:
    loops = sum("list of the list" in answer for answer in _answers(100))
    assert loops / 2000 == pytest.approx(0.2, abs=0.04)


def test_seed_and_sample_change_the_draw() -> None:
    first = _answers(4)
    assert first == _answers(4)
    assert first != _answers(4, seed=1)
    assert first != _answers(4, sample=1)


def test_a_prompts_draw_is_its_own() -> None:
    one, two = prompt_rng(1, "a", 0).random(4), prompt_rng(1, "a", 0).random(4)
    assert one.tolist() == two.tolist()
    others = [prompt_rng(2, "a", 0), prompt_rng(1, "b", 0), prompt_rng(1, "a", 1)]
    assert all(one.tolist() != other.random(4).tolist() for other in others)
