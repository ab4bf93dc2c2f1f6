"""Base models and checkpoints by reference: a name, a local folder, a GGUF file or a hub id.

Only safetensors (or GGUF, converted once) are read and `trust_remote_code` is never on. What was loaded has one digest:
the weights, the rope settings, the number format and the checkpoint on top.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rhstudy.configs import ContextConfig, ModelConfig, cache_root, digest, file_sha256
from rhstudy.errors import InputError, message, require
from rhstudy.hub import CACHED, hub_or_cache
from rhstudy.models.adapters import is_adapter, load_adapter
from rhstudy.models.anatomy import Anatomy, anatomy
from rhstudy.models.fetch import PACKAGED_MODELS, gguf_folder, packaged_model_folder
from rhstudy.models.rope import apply_context, require_rotation

SHIPPED_MODELS = {"tiny": Path(__file__).parent / "tiny"}
"""Models whose weights are part of this package; each has a MODEL_CARD.md beside its weights."""

CHECKPOINT_WEIGHTS = "attention.safetensors"
CHECKPOINT_CARD = "checkpoint.json"
ATTENTION_MODULES = r".*\.(?:self_attn|attention|attn)"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to run, and what it is.

    Attributes:
        model: in eval mode, no gradients.
        tokenizer: its fast tokenizer.
        layout: where its heads are.
        label: for people, for instance ``smollm2-135m``.
        digest: sha256 over base weights, rope settings, dtype, quantisation and checkpoint.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Anatomy
    label: str
    digest: str

    @property
    def pad_id(self) -> int:
        """A token id to fill batches with; its positions are never looked at."""
        return int(self.tokenizer.pad_token_id or 0)


def model_label(config: ModelConfig) -> str:
    """A short name of the model for people, for instance ``smollm2-135m``."""
    return config.name if config.name in PACKAGED_MODELS else Path(config.name).name.removesuffix(".gguf")


def model_folder(config: ModelConfig) -> Path:
    """The local folder that holds `config.name` in hub layout, fetched or converted when needed.

    Raises:
        InputError: no such name, folder or file; or the hub does not have it or cannot be reached.
    """
    cache = cache_root(config.cache_dir)
    if config.name in SHIPPED_MODELS:
        return SHIPPED_MODELS[config.name]
    if config.name in PACKAGED_MODELS:
        return packaged_model_folder(config.name, cache)
    path = Path(config.name).expanduser()
    if path.suffix == ".gguf":
        require(path.is_file(), "model.name", "be an existing GGUF file", config.name, "Check the path")
        return gguf_folder(path, cache)
    if path.is_dir():
        return _checked_folder(path, cache)
    return _hub_snapshot(config.name, cache)


def _checked_folder(path: Path, cache: Path) -> Path:
    if not any(path.glob("*.safetensors")):
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return gguf_folder(ggufs[0], cache)
        got = sorted(item.name for item in path.iterdir())
        require(False, "model.name", "hold safetensors or one GGUF file", got, "Convert the weights", str(path))
    require((path / "config.json").is_file(), "model.name", "hold config.json", str(path), "Use a hub-layout folder")
    return path


def _hub_snapshot(name: str, cache: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
    with hub_or_cache() as away:
        try:
            snapshot = Path(snapshot_download(name, allow_patterns=patterns))
        except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
            known = ", ".join([*SHIPPED_MODELS, *PACKAGED_MODELS])
            remedy = f"Known names: {known}; else give a local folder, a .gguf file or a reachable hub id"
            remedy += f", or {CACHED}" if away else ""
            must = "be a known name, a local folder or a hub id that can be fetched"
            raise InputError(message("model.name", must, name, remedy, away)) from error
    return _checked_folder(snapshot, cache)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Whatever transformers finds wrong with a model's files is the user's to mend.

    `trust_remote_code=False` is said at every call: left out, transformers asks on the terminal.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        remedy = f"transformers says: {(str(error).strip().splitlines() or [type(error).__name__])[0][:200]}"
        raise InputError(message("model.name", "be a model that transformers loads", name, remedy)) from error


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The fast tokenizer of `config.name`.

    Raises:
        InputError: as `model_folder`, or the model has no fast tokenizer (spans need character offsets).
    """
    folder = model_folder(config)
    with _readable(config.name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    remedy = "Save a tokenizer.json beside the weights"
    require(tokenizer.is_fast, "model tokenizer", "be a fast one with offsets", type(tokenizer).__name__, remedy)
    return tokenizer


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first GPU when there is one, else the CPU.

    Raises:
        InputError: a device torch does not know or that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(message("model.device", "be auto, cpu or cuda[:N]", name, "Choose one of these")) from error
    known = device.type in ("cpu", "cuda")
    require(known, "model.device", "be auto, cpu or cuda[:N]", name, "Choose one of these")
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    require(not missing, "model.device", "be present", name, f"This machine has {torch.cuda.device_count()} GPUs")
    return device


def resolve_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU and float32 on a CPU (faster there than bfloat16 without matrix units)."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[config.dtype]


def load_model(config: ModelConfig, context: ContextConfig, checkpoint: Path | None = None) -> LoadedModel:
    """Load base weights, extend the context, put a checkpoint on top.

    Args:
        config: which base and how it is held.
        context: context extension; applied through the model's own rope parameters.
        checkpoint: folder written by `rhstudy finetune`, or None for the untuned model.

    Raises:
        InputError: unknown model or device, rope settings the model does not know, a checkpoint of another base, or
            quantisation without bitsandbytes.
    """
    return with_checkpoint(load_base(config, context), config, context, checkpoint)


def load_base(config: ModelConfig, context: ContextConfig) -> LoadedModel:
    """Load base weights with their context extended; errors as `load_model`."""
    folder = model_folder(config)
    device = resolve_device(config.device)
    # Torch looks at it once, at the process' first matrix product on a GPU; a later deterministic training needs it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    dtype = resolve_dtype(config, device)
    with _readable(config.name):
        model_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        apply_context(model_config, context, config.name)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            config=model_config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            **_placement(config, device),
        )
    require_rotation(model, context, config.name)
    model.train(False)
    model.requires_grad_(False)
    return LoadedModel(
        model=model,
        tokenizer=load_tokenizer(config),
        layout=anatomy(model),
        label=model_label(config),
        digest=_model_digest(config, context, "untuned"),
    )


def with_checkpoint(
    base: LoadedModel, config: ModelConfig, context: ContextConfig, checkpoint: Path | None
) -> LoadedModel:
    """`base` with a checkpoint put on it, in place; `base` itself where there is none. Errors as `load_checkpoint`."""
    if checkpoint is None:
        return base
    base_digest = base_model_digest(model_folder(config), config)
    model, tuned = load_checkpoint(base.model, checkpoint, base_digest, config, context)
    model.train(False)
    model.requires_grad_(False)
    return replace(base, model=model, layout=anatomy(model), digest=_model_digest(config, context, tuned))


def _model_digest(config: ModelConfig, context: ContextConfig, tuned: str) -> str:
    dtype = resolve_dtype(config, resolve_device(config.device))
    settings = [str(dtype), config.quantization, *rope_settings(context)]
    return digest(base_model_digest(model_folder(config), config), settings, tuned)


def _placement(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    if config.quantization == "none":
        return {"device_map": {"": device}}
    there = importlib.util.find_spec("bitsandbytes") is not None
    remedy = "Run pip install bitsandbytes"
    require(there, "model.quantization", "be none where bitsandbytes is missing", config.quantization, remedy)
    from transformers import BitsAndBytesConfig

    # Attention is what is trained and observed: it stays exact, unless adapters are trained on a base all in 4 bits.
    skipped = ["lm_head"] if config.quantization == "nf4" else [ATTENTION_MODULES, "lm_head"]
    options: dict[str, Any] = {"llm_int8_skip_modules": skipped}
    if config.quantization == "8bit":
        options |= {"load_in_8bit": True}
    else:
        compute = resolve_dtype(config, device)
        options |= {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute}
        options |= {"bnb_4bit_use_double_quant": config.quantization == "nf4"}
    chosen = BitsAndBytesConfig(**options)  # type: ignore[no-untyped-call]
    return {"quantization_config": chosen, "device_map": {"": device}}


def base_model_digest(folder: Path, config: ModelConfig) -> str:
    """SHA-256 over the names and contents of the model's safetensors files, config and generation config."""
    settings = [folder / name for name in ("config.json", "generation_config.json") if (folder / name).is_file()]
    files = sorted([*folder.glob("*.safetensors"), *settings])
    return digest([[path.name, _cached_sha256(path, cache_root(config.cache_dir))] for path in files])


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the tokenizer's files in a model's folder."""
    files = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    return digest([[path.name, file_sha256(path)] for path in files])


def _cached_sha256(path: Path, cache: Path) -> str:
    # Hashing 16 GB at every stage would cost a minute: keyed by size and mtime, a changed file is hashed anew.
    status = path.stat()
    key = digest(str(path.resolve()), status.st_size, status.st_mtime_ns)
    note = cache / "sha256" / key
    if note.is_file():
        return note.read_text()
    found = file_sha256(path)
    note.parent.mkdir(parents=True, exist_ok=True)
    scratch = note.with_suffix(f".{os.getpid()}")
    scratch.write_text(found)
    os.replace(scratch, note)
    return found


def rope_settings(context: ContextConfig) -> list[Any]:
    """What of `context` changes outputs, in the form that digests and checkpoint cards keep."""
    return [context.rope_theta] if context.scaling == "theta" else [context.rope_theta, context.scaling, context.factor]


def load_checkpoint(
    model: PreTrainedModel, folder: Path, base_digest: str, config: ModelConfig, context: ContextConfig
) -> tuple[PreTrainedModel, str]:
    """Put a checkpoint on `model`: attention weights are copied into it, an adapter's layers are put around its own.

    Returns:
        The model, and a sha256 over what was put on it.

    Raises:
        InputError: missing files, another base model, other rope settings, an adapter of a base quantised otherwise, or
            tensors that do not fit.
    """
    weights, card_file = folder / CHECKPOINT_WEIGHTS, folder / CHECKPOINT_CARD
    adapter = is_adapter(folder)
    complete = (weights.is_file() or adapter) and card_file.is_file()
    remedy = "Give the run id or artifact folder of a finetune stage"
    require(complete, "checkpoint", f"hold {CHECKPOINT_WEIGHTS} and {CHECKPOINT_CARD}", str(folder), remedy)
    card = json.loads(card_file.read_text(encoding="utf-8"))
    require(card["base_digest"] == base_digest, "checkpoint", "be of this base model", card["base_model"],
            "Load the base model it was trained from", str(folder))  # fmt: skip
    require(card["rope_theta"] == context.rope_theta, "context.rope_theta", f"be {card['rope_theta']} as in training",
            context.rope_theta, "Use the checkpoint's own rope settings", str(folder))  # fmt: skip
    trained = [card["rope_theta"], card.get("scaling", "theta"), card.get("factor", 1.0)]
    require(trained[1:] == [context.scaling, context.factor], "context", f"be scaling {trained[1]}, factor {trained[2]}"
            " as in training", context.label, "Use the checkpoint's own rope settings", str(folder))  # fmt: skip
    if adapter:
        held = card["quantization"]
        remedy = "An adapter corrects the base it was trained on, rounding errors included"
        require(held == config.quantization, "model.quantization", f"be {held} as in training", config.quantization,
                remedy, str(folder))  # fmt: skip
        return load_adapter(model, folder)
    tensors = load_file(weights)
    named = dict(model.named_parameters())
    stray = sorted(set(tensors) - set(named))
    require(not stray, "checkpoint", "name parameters of the model", stray[:3], remedy, str(folder))
    with torch.no_grad():
        for name, tensor in tensors.items():
            named[name].copy_(tensor)
    return model, file_sha256(weights)
