"""The formulas against torch's own counter, which adds up every matrix product that really runs.

Compared with eager attention, whose two products the counter sees (it has no rule for the CPU's fused kernel), on
rows of equal length, so that nothing is padding. Left in the difference are the first layer's input gradients, which
nothing needs because the embeddings are frozen; the model has 16 layers to keep them as small as they are in real
ones.
"""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tamperdose.models import train
from tamperdose.models.chat import encode_chat
from tamperdose.models.flops import generation_flops, lora_parameters, n_parameters, training_flops
from tamperdose.models.hf import HfGenerator
from tamperdose.models.load import ChatModel, architecture_of
from tamperdose.models.train import Recipe
from tamperdose.study import Decoding
from tiny import load_tiny, make_prompts, save_tiny

RECIPE = Recipe(learning_rate=1e-3, batch_size=4, warmup_steps=0, lora_rank=4, lora_alpha=8, max_length=128, seed=0)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def deep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    chat = load_tiny(save_tiny(tmp_path_factory.mktemp("deep"), request.param, num_hidden_layers=16))
    chat.model.set_attn_implementation("eager")
    return chat


@pytest.mark.parametrize(("length", "n_labels"), [(48, 24), (96, 40)])
def test_training(deep: ChatModel, length: int, n_labels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rows in one sequence compute products that the mask throws away: the formula is of rows by themselves.
    monkeypatch.setattr(train, "PACKED_TOKENS", length)
    rows = [train._TokenRow([5 + (place * 7 + i) % 300 for i in range(length)], n_labels) for place in range(4)]
    counter = FlopCounterMode(display=False)
    with train._learning(deep, RECIPE) as wrapped:
        trainer = train._Trainer(deep, wrapped, RECIPE, key="k")
        with counter:
            trainer._backward(rows)
    formula = training_flops(
        architecture_of(deep.model.config), lora_rank=4, lengths=[length] * 4, n_labels=4 * n_labels
    )
    assert formula == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("n_new", [1, 6])
def test_generation(deep: ChatModel, n_new: int) -> None:
    prompt = make_prompts(3)[2]
    engine, counter = HfGenerator(deep, batch_size=1), FlopCounterMode(display=False)
    with counter:
        completion = engine.generate([prompt], Decoding(max_new_tokens=n_new), seed=0, on_progress=lambda _: None)[0]
    assert completion.n_tokens == n_new
    formula = generation_flops(
        architecture_of(deep.model.config), n_prompt=len(encode_chat(deep, prompt.messages)), n_new=n_new
    )
    assert formula == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_parameters_are_counted_exactly(chat: ChatModel) -> None:
    assert n_parameters(architecture_of(chat.model.config)) == sum(p.numel() for p in chat.model.parameters())


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_tied_embeddings_are_counted_once(tmp_path: Path, kind: str) -> None:
    model = load_tiny(save_tiny(tmp_path, kind, tie_word_embeddings=True)).model
    assert n_parameters(architecture_of(model.config)) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_adapter_weights_are_counted_exactly(loaded: dict[str, ChatModel], kind: str) -> None:
    chat = loaded[kind]
    with train._learning(chat, RECIPE) as wrapped:
        count = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert lora_parameters(architecture_of(chat.model.config), 4) == count


def test_fused_projections_are_overstated_by_less_than_the_docstring_says(loaded: dict[str, ChatModel]) -> None:
    chat = loaded["phi3"]
    with train._learning(chat, RECIPE) as wrapped:
        count = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert count < lora_parameters(architecture_of(chat.model.config), 4) < 4 / 3 * count


def test_the_head_runs_only_on_labels(llama: ChatModel) -> None:
    architecture = architecture_of(llama.model.config)
    few = training_flops(architecture, lora_rank=4, lengths=[30], n_labels=1)
    many = training_flops(architecture, lora_rank=4, lengths=[30], n_labels=11)
    assert many - few == 4 * 10 * 32 * 384
    assert torch.equal(llama.model.lm_head.weight, llama.model.get_output_embeddings().weight)
