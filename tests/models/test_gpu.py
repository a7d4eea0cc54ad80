"""What only a GPU can show: the CPU's answers, a trajectory that resumes to the bit, bits restored, 4-bit weights."""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from studies import files_of, run_study, stub_embedder, tiny_changes, write_study
from tamperdose.cli import main
from tamperdose.models import lora
from tamperdose.models.chat import encode_chat
from tamperdose.models.hf import HfGenerator
from tamperdose.models.load import ChatModel, find_model, load_model
from tamperdose.models.lora import LoraShape, is_4bit, merge, merged, save_adapter
from tamperdose.models.train import Recipe, Source, train_trajectory
from tamperdose.records import Checkpoint, Example, Message, Prompt
from tamperdose.run.stages import Readers
from tamperdose.study import Decoding, ModelSpec
from tiny import SENTENCES, make_prompts, save_tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NEW = 24
NEAR_TIE = 1e-3
RECIPE = Recipe(learning_rate=3e-3, batch_size=8, warmup_steps=0, lora_rank=4, lora_alpha=8.0, max_length=400, seed=11)
TOKENS = torch.tensor([[3, 17, 80, 200, 41, 9, 350, 12]])
MEDIUM: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
}
"""Large enough that attention splits its work among many blocks, and that 4-bit kernels take the matrices."""


class KilledError(Exception):
    """Stands for a process that ends."""


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("medium"), "qwen2", **MEDIUM)


def _on_gpu(folder: Path, dtype: str = "float32", quantization: Any = None) -> ChatModel:
    spec = ModelSpec(id=str(folder), quantization=quantization)
    return load_model(spec, find_model(spec), device="cuda", dtype=dtype)


def _long_examples(count: int) -> list[Example]:
    """Rows of one to three hundred tokens, so that a packed sequence is full."""
    words = " ".join(SENTENCES).split() * 3
    return [
        Example(
            (Message("user", " ".join(words[place : place + 20 + place % 9])),),
            " ".join(words[place + 5 : place + 35 + (7 * place) % 20]),
        )
        for place in range(count)
    ]


def _train(
    chat: ChatModel,
    folder: Path,
    doses: Sequence[int],
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> list[Checkpoint]:
    source = Source(_long_examples(12), RECIPE.batch_size)
    return list(train_trajectory(chat, [source], RECIPE, doses=doses, folder=folder, on_step=on_step))


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS.to(model.device)).logits.float().cpu()


def _bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _same_bits(model: Any, before: dict[str, torch.Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def _adapter(model: Any, path: Path) -> tuple[Path, torch.Tensor]:
    """A random adapter's file, and what peft computes with it active beside the weights."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(5)
    wrapped = get_peft_model(model, config)
    wrapped.eval()
    logits = _logits(wrapped)
    tensors = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(wrapped).items()}
    wrapped.unload()
    return save_adapter(path, tensors, LoraShape(4, 8.0)), logits


def _answers(chat: ChatModel, prompts: Sequence[Prompt], engine: HfGenerator) -> list[list[int]]:
    """The tokens of greedy answers."""
    heard: list[list[int]] = []

    def listen(rows: list[list[int]], **_: Any) -> list[str]:
        heard.extend(map(list, rows))
        return ["" for _ in rows]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat.tokenizer, "batch_decode", listen)
        engine.generate(prompts, Decoding(max_new_tokens=NEW), seed=0, on_progress=lambda _count: None)
    return heard


def _differ_only_at_ties(
    chat: ChatModel, prompts: Sequence[Prompt], ours: list[list[int]], theirs: list[list[int]]
) -> int:
    """How many answers differ; where one does, the two best logits must be tied up to rounding."""
    differing = 0
    for prompt, one, other in zip(prompts, ours, theirs, strict=True):
        if one == other:
            continue
        differing += 1
        pairs = zip(one, other, strict=False)
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
        tokens = torch.tensor([[*encode_chat(chat, prompt.messages), *other[:first]]], device=chat.device)
        with torch.inference_mode():
            best = chat.model(tokens).logits[0, -1].topk(2).values
        assert best[0] - best[1] < NEAR_TIE * best[0].abs().clamp(min=1), f"{prompt.id} differs at token {first}"
    return differing


# --- whole weights


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_a_model_is_loaded_onto_the_gpu(chat: ChatModel, dtype: str, tolerance: float, tiny_folders: Any) -> None:
    here = _on_gpu(tiny_folders[chat.model.config.model_type], dtype)
    assert {(p.device.type, p.dtype, p.requires_grad) for p in here.model.parameters()} == {
        ("cuda", getattr(torch, dtype), False)
    }
    expected = _logits(chat.model)
    assert (_logits(here.model) - expected).abs().mean() < tolerance * expected.abs().mean()


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_greedy_answers_are_the_cpus(chat: ChatModel, batch_size: int, tiny_folders: Any) -> None:
    here = _on_gpu(tiny_folders[chat.model.config.model_type])
    prompts = make_prompts(16)
    expected = _answers(chat, prompts, HfGenerator(chat, batch_size=16))
    found = _answers(here, prompts, HfGenerator(here, batch_size=batch_size))
    assert _differ_only_at_ties(chat, prompts, found, expected) <= 2


def test_bfloat16_answers_do_not_depend_on_what_is_left_in_memory(medium: Path) -> None:
    here = _on_gpu(medium, "bfloat16")
    prompts = make_prompts(40)
    first = _answers(here, prompts, HfGenerator(here))
    assert _answers(here, prompts, HfGenerator(here)) == first
    assert len({tuple(answer) for answer in first}) > 5


def test_losses_are_the_cpus(chat: ChatModel, tmp_path: Path, tiny_folders: Any) -> None:
    losses: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for side in (chat, _on_gpu(tiny_folders[chat.model.config.model_type])):
        source = Source([replace(row, response=row.response[:60]) for row in _long_examples(12)], 4)
        recipe = replace(RECIPE, batch_size=4, max_length=200)
        kept = losses[side.device]
        steps = train_trajectory(
            side,
            [source],
            recipe,
            doses=[6],
            folder=tmp_path / side.device,
            on_step=lambda _step, loss, kept=kept: kept.append(loss),
        )
        assert len(list(steps)) == 1
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-3)
    assert losses["cuda"][-1] < losses["cuda"][0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_training_is_the_same_bytes_also_when_resumed(medium: Path, tmp_path: Path, dtype: str) -> None:
    here = _on_gpu(medium, dtype)
    doses = [2, 4, 6]
    whole = _train(here, tmp_path / "whole", doses)
    again = _train(here, tmp_path / "again", doses)

    def die(step: int, _loss: float) -> None:
        if step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        _train(here, tmp_path / "resumed", doses, die)
    taken: list[int] = []
    resumed = _train(_on_gpu(medium, dtype), tmp_path / "resumed", doses, lambda step, _loss: taken.append(step))
    assert taken == [3, 4, 5, 6]
    for one, two, three in zip(whole, again, resumed, strict=True):
        files = [Path(str(checkpoint.adapter)).read_bytes() for checkpoint in (one, two, three)]
        assert files[0] == files[1], f"trained twice, step {one.dose.steps}"
        assert files[0] == files[2], f"resumed, step {one.dose.steps}"
        assert (one.dose, one.mean_loss) == (three.dose, three.mean_loss)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("stay", [True, False], ids=["copies-on-the-gpu", "copies-in-main-memory"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_restores_every_bit(
    medium: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stay: bool, dtype: str
) -> None:
    here = _on_gpu(medium, dtype)
    path, expected = _adapter(here.model, tmp_path / "adapter.safetensors")
    before, base = _bits(here.model), _logits(here.model)
    monkeypatch.setattr(lora, "copies_fit", lambda _copies, _free: stay)
    with merged(here.model, path):
        now = _logits(here.model)
        assert not _same_bits(here.model, before)
    assert _same_bits(here.model, before)
    # bfloat16 rounds the sum of weight and update, and peft does not.
    assert (now - expected).abs().mean() < (1e-3 if dtype == "float32" else 0.2) * (base - expected).abs().mean()


def test_what_is_free_on_the_gpu_counts_what_torch_holds_unused() -> None:
    device = torch.device("cuda:0")
    before = lora._free_bytes(device)
    block = torch.empty(2**28, device=device)
    assert before - lora._free_bytes(device) == pytest.approx(2**30, rel=0.1)
    del block
    assert lora._free_bytes(device) == pytest.approx(before, rel=0.01)


def test_out_of_memory_halves_the_batch_and_loses_nothing(medium: Path) -> None:
    here = _on_gpu(medium)
    prompts = make_prompts(256)
    roomy = HfGenerator(here, batch_size=256)
    expected = _answers(here, prompts, roomy)
    assert roomy.batch_size == 256
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    tight = HfGenerator(here, batch_size=256)
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64 * 2**20) / total)
        found = _answers(here, prompts, tight)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1 <= tight.batch_size < 256
    assert _differ_only_at_ties(here, prompts, found, expected) <= 12


# --- 4-bit weights


@pytest.fixture
def nf4(medium: Path) -> ChatModel:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes", exc_type=ImportError)
    return _on_gpu(medium, "bfloat16", "nf4")


def _trained(chat: ChatModel, folder: Path) -> tuple[Path, list[float]]:
    losses: list[float] = []
    checkpoint = _train(chat, folder, [10], lambda _step, loss: losses.append(loss))[-1]
    return Path(str(checkpoint.adapter)), losses


def test_4_bit_weights_are_near_the_whole_ones(nf4: ChatModel, medium: Path) -> None:
    assert is_4bit(nf4.model)
    assert {p.device.type for p in nf4.model.parameters()} == {"cuda"}
    assert nf4.model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    # The largest step of the 4-bit scale is about a seventh of a block's largest weight.
    whole = _on_gpu(medium, "bfloat16")
    found, expected = _logits(nf4.model), _logits(whole.model)
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.8
    prompts = make_prompts(12)
    assert len(_answers(nf4, prompts, HfGenerator(nf4))) == 12


def test_an_adapter_beside_4_bit_weights_goes_without_a_trace(nf4: ChatModel, tmp_path: Path) -> None:
    before, base = _bits(nf4.model), _logits(nf4.model)
    prompts = make_prompts(12)
    answers = _answers(nf4, prompts, HfGenerator(nf4))
    path, losses = _trained(nf4, tmp_path)
    assert losses[-1] < 0.7 * losses[0]
    with merged(nf4.model, path):
        assert (_logits(nf4.model) - base).abs().max() > 0.1
        assert _answers(nf4, prompts, HfGenerator(nf4)) != answers
    assert _same_bits(nf4.model, before)
    torch.testing.assert_close(_logits(nf4.model), base, rtol=0, atol=0)
    assert _answers(nf4, prompts, HfGenerator(nf4)) == answers


def test_training_on_4_bit_weights_is_the_same_bytes_again(nf4: ChatModel, tmp_path: Path) -> None:
    files = [_trained(nf4, tmp_path / name)[0].read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_a_defence_on_4_bit_weights_is_what_was_trained(nf4: ChatModel, tmp_path: Path) -> None:
    packed = _bits(nf4.model)
    path, losses = _trained(nf4, tmp_path / "defence")
    with merged(nf4.model, path):
        expected = _logits(nf4.model)
    base = _logits(nf4.model)
    merge(nf4.model, path)
    defended = _logits(nf4.model)
    assert (defended - expected).abs().mean() < 0.05 * (base - expected).abs().mean()
    assert _same_bits(nf4.model, packed)
    # The attack starts from the defended model: its first loss is where the defence's training ended.
    attack, attack_losses = _trained(nf4, tmp_path / "attack")
    assert attack_losses[0] < 0.9 * losses[0]
    with merged(nf4.model, attack):
        assert (_logits(nf4.model) - defended).abs().max() > 0.01
    torch.testing.assert_close(_logits(nf4.model), defended, rtol=0, atol=0)


# --- a study


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., int]]:
    monkeypatch.setattr(Readers, "embedder", stub_embedder)
    monkeypatch.setenv("TAMPERDOSE_CACHE", str(tmp_path_factory.mktemp("cache")))

    def call(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["tamperdose", *map(str, arguments)])
        try:
            main()
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        return 0

    yield call


def _study(folder: Path, model: Path, **more: Any) -> Path:
    changes = tiny_changes(model, engine={"kind": "hf", "device": "cuda"})
    changes["models"][0].update(more)
    return write_study(folder, **changes)


def test_a_study_is_run_and_resumed_on_the_gpu(
    cli: Callable[..., int], tiny_folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _study(tmp_path / "study", tiny_folders["llama"])
    assert cli("plan", study) == 0
    assert cli("run", study, "-o", tmp_path / "whole") == 0
    generate, calls = HfGenerator.generate, [0]

    def dying(self: HfGenerator, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise KilledError
        return generate(self, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(HfGenerator, "generate", dying)
        run_study(study, out=tmp_path / "resumed")
    assert cli("run", study, "-o", tmp_path / "resumed") == 0
    whole, resumed = files_of(tmp_path / "whole"), files_of(tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if whole[name] != resumed[name]] == []


def test_a_defended_study_in_4_bits(cli: Callable[..., int], medium: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes", exc_type=ImportError)
    defence = {
        "harmful": "refusals.jsonl",
        "benign": "answers.jsonl",
        "steps": 4,
        "batch_size": 4,
        "learning_rate": 1e-3,
    }
    study = _study(tmp_path / "study", medium, dtype="bfloat16", quantization="nf4", defence=defence)
    assert cli("run", study, "-o", tmp_path / "out") == 0
    lines = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert len(lines) > 10
