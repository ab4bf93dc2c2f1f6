"""Whether two models may lend each other activations: one base, tokenizer and rotation, attention trained apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rhstudy.errors import require
from rhstudy.models.anatomy import attention_modules, base_model
from rhstudy.models.load import LoadedModel

_ROTATION = ("rope_parameters", "rope_theta", "rope_scaling", "no_rope_layers")
_NOT_THE_MODEL = ("dtype", "torch_dtype", "transformers_version", "use_cache", "quantization_config")
_SETTINGS_OF_A_CALL = ("truncation", "padding")


def require_pair(donor: LoadedModel, recipient: LoadedModel) -> None:
    """Check that `donor` and `recipient` are one base model whose attention was trained apart.

    Compared are the settings of the architecture, the rope parameters, the tokenizers, and every weight outside the
    attention modules (adapters' own weights are training and are left out). Models in memory are compared, so it does
    not matter where they came from.

    Raises:
        InputError: they differ in one of these, naming it.
    """
    ours, theirs = _settings(recipient.model), _settings(donor.model)
    remedy = "Patch between models fine-tuned with one context extension"
    rotations = [{key: facts.get(key) for key in _ROTATION} for facts in (ours, theirs)]
    turned = f"be the recipient's, {_short(rotations[0])}"
    require(rotations[0] == rotations[1], "donor rope parameters", turned, _short(rotations[1]), remedy)
    remedy = "Patch between fine-tuned models of one base"
    differing = [key for key in sorted({*ours, *theirs} - {*_ROTATION}) if ours.get(key) != theirs.get(key)]
    pairs = {key: (theirs.get(key), ours.get(key)) for key in differing[:3]}
    require(not differing, "donor", "be of the recipient's architecture", f"<(donor, recipient): {pairs}>", remedy)
    same = _same_tokenizer(donor.tokenizer, recipient.tokenizer)
    must = "be the recipient's"
    require(same, "donor tokenizer", must, donor.label, "Token ids would mean other words", recipient.label)
    changed = _first_difference(donor.model, recipient.model)
    must = "be of the recipient's base (weights outside attention are equal)"
    require(not changed, "donor", must, f"<{changed} differs>", remedy, f"{donor.label}, {recipient.label}")


def _settings(model: PreTrainedModel) -> dict[str, Any]:
    values: dict[str, Any] = base_model(model).config.to_dict()
    return {key: value for key, value in values.items() if not key.startswith("_") and key not in _NOT_THE_MODEL}


def _short(rotation: Mapping[str, Any]) -> str:
    parameters = rotation.get("rope_parameters")
    return f"<{parameters if parameters is not None else dict(rotation)}>"


def _same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    return one is other or _tokenizer_facts(one) == _tokenizer_facts(other)


def _tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    facts: dict[str, Any] = {"vocabulary": tokenizer.get_vocab()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    return facts | {key: value for key, value in whole.items() if key not in _SETTINGS_OF_A_CALL}


def _first_difference(donor: PreTrainedModel, recipient: PreTrainedModel) -> str:
    """The first weight outside attention that differs or that one of them lacks; empty when none does."""
    ours, theirs = dict(_frozen_weights(recipient)), dict(_frozen_weights(donor))
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None or one.shape != other.shape or not torch.equal(one, other.to(one.device)):
            return name
    return ""


def _frozen_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights that training attention, or adapters anywhere, leaves as they were; names without adapters' wrapping."""
    attention = tuple(f"{name}." for name, _ in attention_modules(model).values())
    for name, weight in base_model(model).named_parameters():
        plain = name.replace(".base_layer.", ".")
        if not plain.startswith(attention) and ".lora_" not in name:
            yield plain, weight
