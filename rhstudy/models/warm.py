"""Base models that stay in memory from stage to stage.

A study runs stage after stage on one base. Inside `rhstudy.keeping.keeping` it is read once and lent to one stage at a
time. Only attention weights may be changed by a borrower (a checkpoint, or training them); when the loan ends the
base's own are copied back, so that every borrower finds the bits that files hold. A failed stage gives nothing back;
training that is given up does.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rhstudy.configs import ContextConfig, ModelConfig, digest, digest_view
from rhstudy.errors import PrunedTrialError
from rhstudy.keeping import clear, is_keeping, put, take
from rhstudy.models.adapters import is_adapter
from rhstudy.models.anatomy import attention_modules
from rhstudy.models.load import (
    LoadedModel,
    base_model_digest,
    load_base,
    model_folder,
    model_label,
    tokenizer_digest,
    with_checkpoint,
)

KIND = "base models"
_SECONDS = "seconds of reading base models"
Trained = Literal["nothing", "attention", "adapters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """A base model and its own attention weights, by name, on the CPU."""

    loaded: LoadedModel
    attention: dict[str, Tensor]


@contextmanager
def lent_model(
    config: ModelConfig, context: ContextConfig, checkpoint: Path | None = None, *, trained: Trained = "nothing"
) -> Iterator[LoadedModel]:
    """The model for the length of the block, as `load_model` gives it; read from files only where it is not kept.

    Args:
        config: as for `load_model`.
        context: as for `load_model`.
        checkpoint: as for `load_model`.
        trained: what the block trains. A model that adapters are put into, by it or by the checkpoint, is not kept, and
            the kept one makes room for it.

    Raises:
        InputError: as `load_model`.
    """
    wrapped = trained == "adapters" or (checkpoint is not None and is_adapter(checkpoint))
    if wrapped or not is_keeping():
        clear(KIND)
        yield with_checkpoint(load_base(config, context), config, context, checkpoint)
        return
    folder = model_folder(config)
    content = (base_model_digest(folder, config), tokenizer_digest(folder), model_label(config))
    key = digest(digest_view(config), config.device, digest_view(context), *content)
    base: _Base | None = take(KIND, key)
    if base is None:
        clear(KIND)  # before the next one is read: two may not fit
        began = time.monotonic()
        loaded = load_base(config, context)
        put(_SECONDS, "all", loading_s() + time.monotonic() - began)
        base = _Base(loaded=loaded, attention=_attention_weights(loaded))
    try:
        yield with_checkpoint(base.loaded, config, context, checkpoint)
    except PrunedTrialError:  # given up between two steps, in order
        _give_back(key, base, changed=True)
        raise
    _give_back(key, base, changed=checkpoint is not None or trained == "attention")


def _give_back(key: str, base: _Base, *, changed: bool) -> None:
    if changed:
        _restore(base)
    put(KIND, key, base)


def loading_s() -> float:
    """Seconds spent on reading base models so far, inside `rhstudy.keeping.keeping`."""
    seconds: float = take(_SECONDS, "all") or 0.0
    put(_SECONDS, "all", seconds)
    return seconds


def let_go() -> None:
    """Free the kept model's memory, for other processes."""
    clear(KIND)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _attention_weights(loaded: LoadedModel) -> dict[str, Tensor]:
    modules = attention_modules(loaded.model).values()
    return {
        f"{name}.{suffix}": value.detach().to("cpu", copy=True)
        for name, module in modules
        for suffix, value in module.named_parameters()
    }


def _restore(base: _Base) -> None:
    model, named = base.loaded.model, dict(base.loaded.model.named_parameters())
    with torch.no_grad():
        for name, own in base.attention.items():
            named[name].grad = None
            named[name].data = named[name].data.to(own.dtype)
            named[name].copy_(own)
    model.train(False)
    model.requires_grad_(False)
