"""Tiny random chat models with a real tokenizer and chat template, built in the test: nothing is downloaded.

They say nonsense, but they are the same classes as the models of the studies, so whatever holds for them about
generation, training and merging holds for those.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tamperdose.models.load import ChatModel, find_model, load_model
from tamperdose.records import Example, Message, Prompt, Subset
from tamperdose.study import ModelSpec

CLASSES = ("llama", "qwen2", "phi3")

END, PAD, OTHER_END = "<|end|>", "<|pad|>", "<|endoftext|>"
TEMPLATE = (
    "<|system|>answer in words of the river and the mill<|end|>"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SENTENCES = (
    "the river runs past the old mill and under the stone bridge",
    "a grey heron waits in the reeds while the water turns the wheel",
    "we walked to the market to buy bread, apples and a new rope",
    "she wrote the number seven on the door and went home to sleep",
    "no one could say why the lamp was lit at noon in the empty house",
    "I will not help with that; ask me something else, please",
    "here is the list: first the stone, then the sand, then the water",
)

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    # Larger than usual: with the customary 0.02 all logits of a random model are nearly tied.
    "initializer_range": 0.4,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 384 tokens with a chat template that starts every prompt alike."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=[PAD, END, OTHER_END, "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    fast.chat_template = TEMPLATE
    return fast


def make_model(kind: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random model of a class in float32; `changes` override its configuration."""
    tokens = {"vocab_size": 384, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    sizes = {**_SIZES, **tokens, "num_key_value_heads": 2, **changes}
    makers: dict[str, tuple[Any, Any]] = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "phi3": (Phi3Config, Phi3ForCausalLM),
    }
    config_class, model_class = makers[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config_class(**sizes)).eval()


def save_tiny(folder: Path, kind: str, *, end_bias: float = 0.0, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny model and its tokenizer to a folder that `ModelSpec(id=str(folder))` names.

    `end_bias` pulls the end token's row of the head towards the mean hidden state, so that answers end early, each
    at a place of its own.
    """
    model = make_model(kind, seed=seed, **changes)
    if end_bias:
        with torch.no_grad():
            tokens = torch.randint(6, 384, (4, 64), generator=torch.Generator().manual_seed(seed))
            hidden = model.model(tokens).last_hidden_state.flatten(0, 1)
            model.lm_head.weight[1] += end_bias * hidden.mean(dim=0) / hidden.mean(dim=0).norm()
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def load_tiny(folder: Path, *, dtype: str = "float32") -> ChatModel:
    """Load it the way a run does."""
    spec = ModelSpec(id=str(folder))
    return load_model(spec, find_model(spec), device="cpu", dtype=dtype)


def make_prompts(count: int, *, subset: Subset = Subset.HARMFUL) -> list[Prompt]:
    """Prompts of many lengths: 1 to 40 words, in no order of length."""
    words = " ".join(SENTENCES).split()
    lengths = [1 + (7 * place) % 40 for place in range(count)]
    texts = [" ".join(words[place : place + length]) for place, length in enumerate(lengths)]
    return [
        Prompt(id=f"q{place}", messages=(Message("user", text),), subset=subset, template=f"t{place}")
        for place, text in enumerate(texts)
    ]


def make_examples(count: int) -> list[Example]:
    """Training rows of many lengths."""
    words = " ".join(SENTENCES).split()
    return [
        Example(
            (Message("user", " ".join(words[place : place + 1 + place % 5])),),
            " ".join(words[2 * place : 2 * place + 2 + (3 * place) % 7]),
        )
        for place in range(count)
    ]
