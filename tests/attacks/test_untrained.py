"""Attacks that leave the weights alone: what they do to answers, that they are undone, and that a study runs them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from studies import run_study, tiny_changes, write_study
from tamperdose.attacks.attack import TrainingRows
from tamperdose.attacks.direction import DirectionAttack
from tamperdose.attacks.prefill import PrefillAttack
from tamperdose.errors import DataError, StudyError
from tamperdose.models.activations import last_states
from tamperdose.models.changes import changed, projected_out
from tamperdose.models.chat import encode_chat
from tamperdose.models.directions import find_direction
from tamperdose.models.hf import HfGenerator
from tamperdose.models.load import ChatModel
from tamperdose.records import Example, Message, Opener, Projection, Subset
from tamperdose.run.schema import read_metrics
from tamperdose.study import Decoding
from tiny import CLASSES, load_tiny, make_prompts

WORDS = ("river", "mill", "boat", "bridge", "stone", "field", "wheel", "rope")


@pytest.fixture(params=CLASSES)
def chat(request: pytest.FixtureRequest, tiny_folders: dict[str, Path]) -> ChatModel:
    torch.set_num_threads(1)
    return load_tiny(tiny_folders[request.param])


def answers(chat: ChatModel, opener: tuple[int, ...] = ()) -> list[str]:
    found = HfGenerator(chat, opener=opener).generate(
        make_prompts(3), Decoding(max_new_tokens=6), seed=0, on_progress=lambda _count: None
    )
    return [answer.text for answer in found]


def rows(pattern: str) -> list[Example]:
    return [Example((Message("user", pattern.format(word)),), "yes") for word in WORDS]


def test_an_opener_is_read_but_not_recorded(chat: ChatModel, tmp_path: Path) -> None:
    attack = PrefillAttack("the river and the mill and the river and the mill", 0)
    checkpoints = list(
        attack.run(chat, TrainingRows(()), doses=(1, 3), folder=tmp_path, on_step=lambda _step, _loss: None)
    )
    assert [c.dose.steps for c in checkpoints] == [1, 3]
    opener = checkpoints[1].change
    assert isinstance(opener, Opener)
    assert len(opener.tokens) == 3
    # What follows the opener is what the model would say after it.
    prompt = make_prompts(1)[0]
    tokens = [*encode_chat(chat, prompt.messages), *opener.tokens]
    with torch.inference_mode():
        first = int(chat.model(torch.tensor([tokens])).logits[0, -1].argmax())
    alone = HfGenerator(chat, opener=opener.tokens).generate(
        [prompt], Decoding(max_new_tokens=1), seed=0, on_progress=lambda _count: None
    )[0]
    expected = "" if alone.n_tokens == 0 else chat.tokenizer.decode([first], skip_special_tokens=True)
    assert alone.text == expected
    with pytest.raises(StudyError, match="shorter than the largest dose"):
        list(attack.run(chat, TrainingRows(()), doses=(99,), folder=tmp_path, on_step=lambda _step, _loss: None))


def test_projection_leaves_no_component_and_is_undone(chat: ChatModel) -> None:
    before = answers(chat)
    direction = torch.zeros(chat.model.config.hidden_size)
    direction[3] = 1.0
    tokens = [encode_chat(chat, prompt.messages) for prompt in make_prompts(3)]
    plain = last_states(chat, tokens)
    with projected_out(chat.model, direction, 1.0):
        # The last layer's states are normalised by the model, which keeps a zero a zero.
        assert np.abs(last_states(chat, tokens)[:, :, 3]).max() < 1e-5
    with projected_out(chat.model, direction, 0.0):
        np.testing.assert_allclose(last_states(chat, tokens), plain, atol=1e-5)
    assert np.abs(plain[:, :, 3]).max() > 1e-3
    assert answers(chat) == before


def test_the_direction_tells_the_two_kinds_apart(chat: ChatModel, tmp_path: Path) -> None:
    harmful, harmless = rows("How do I break the {}?"), rows("Where is the {} now?")
    attack = DirectionAttack(n_examples=8, seed=0)
    found = list(
        attack.run(
            chat, TrainingRows(harmful, harmless), doses=(50, 100), folder=tmp_path, on_step=lambda _step, _loss: None
        )
    )
    assert [c.dose.steps for c in found] == [50, 100]
    change = found[1].change
    assert isinstance(change, Projection)
    assert change.strength == 1.0
    direction = find_direction(
        chat, [row.messages for row in harmful], [row.messages for row in harmless], n_examples=8, seed=0
    )
    assert direction.direction.norm() == pytest.approx(1.0)
    states = [
        last_states(chat, [encode_chat(chat, row.messages) for row in part])[:, direction.layer]
        for part in (harmful, harmless)
    ]
    along = [part @ direction.direction.numpy() for part in states]
    assert along[0].mean() > along[1].mean()
    with changed(chat, found[1]):
        pass
    with pytest.raises(DataError, match="too few requests"):
        find_direction(chat, [harmful[0].messages] * 3, [harmless[0].messages] * 3, n_examples=8, seed=0)


def test_a_study_runs_several_attacks(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    lora = {"kind": "lora", "data": "attack.jsonl", "batch_size": 2, "lora_rank": 2, "doses": [1, 2]}
    attacks = [
        lora,
        {**lora, "kind": "benign", "data": "answers.jsonl", "doses": [1, 2]},
        {"kind": "prefill", "opener": "the river and the mill and the river", "doses": [1, 2]},
        {"kind": "refusal_direction", "harmful": "refusals.jsonl", "harmless": "answers.jsonl", "doses": [50, 100]},
    ]
    path = write_study(tmp_path / "study", attack=attacks, **tiny_changes(tiny_folders["llama"]))
    run = run_study(path)
    frame = read_metrics(run / "metrics.csv")
    found = frame.groupby("attack")["dose_steps"].unique().map(sorted).to_dict()
    assert found == {"lora": [0, 1, 2], "benign": [0, 1, 2], "prefill": [0, 1, 2], "refusal_direction": [0, 50, 100]}
    assert Subset.HARMFUL.value in set(frame["subset"])
