"""A chat model that writes: batched sampling that follows from seeds alone.

All chats of a batch begin alike (instructions, examples), so that part is run once and its cache shared. Sampling adds
Gumbel noise to the highest logits, argmax(logits / T + g), which draws from their softmax; each text's noise comes from
its own seed, so a text depends on its batch by rounding at most.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.errors import require
from rhstudy.models.fetch import PACKAGED_MODELS
from rhstudy.models.load import load_model


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How texts are drawn.

    Attributes:
        temperature: T of the module's formula; 0 takes the likeliest token.
        top_k: tokens drawn from at each step.
        max_new_tokens: longest text; a text cut there is refused for want of its end.
    """

    temperature: float = 0.6
    top_k: int = 20
    max_new_tokens: int = 44

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "sampling.temperature", "be at least 0", self.temperature, "0 is greedy")
        for name in ("top_k", "max_new_tokens"):
            require(getattr(self, name) >= 1, f"sampling.{name}", "be at least 1", getattr(self, name), "Raise it")


class SeededDraw:
    """Draws one token a row; every row has a stream of its own."""

    def __init__(self, seeds: Sequence[int], settings: SamplingSettings) -> None:
        self._streams = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        self._settings = settings

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> list[int]:
        """One token id for each of `rows`, drawn from the `top_k` highest `logits`; noise goes by rank."""
        values, places = logits.float().topk(min(self._settings.top_k, logits.shape[-1]), dim=-1)
        if self._settings.temperature > 0:
            noise = np.stack([self._streams[row].gumbel(size=values.shape[-1]) for row in rows])
            values = values / self._settings.temperature + torch.from_numpy(noise).to(values)
        chosen: list[int] = places.gather(-1, values.argmax(-1, keepdim=True))[:, 0].tolist()
        return chosen


@dataclass(slots=True)
class LocalWriter:
    """A local, packaged or hub chat model as a `rhstudy.data.rewriting.Writer`.

    Attributes:
        model: which one.
        sampling: how it draws.
    """

    model: ModelConfig
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    _loaded: Any = None
    _starts: dict[tuple[int, ...], DynamicCache] = field(default_factory=dict)

    def _ready(self) -> Any:
        if self._loaded is None:
            self._loaded = load_model(self.model, ContextConfig())
            has_template = bool(self._loaded.tokenizer.chat_template)
            remedy = "Use an instruct model"
            require(has_template, "writer.model", "have a chat template", self.model.name, remedy)
        return self._loaded

    @property
    def identity(self) -> Mapping[str, Any]:
        """Name and digest of the model, sha256 of its public file where it has one, and how it draws."""
        loaded, sampling = self._ready(), self.sampling
        return {
            "model": loaded.label,
            "digest": loaded.digest,
            "weights_sha256": PACKAGED_MODELS[self.model.name].sha256 if self.model.name in PACKAGED_MODELS else "",
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "max_new_tokens": sampling.max_new_tokens,
        }

    def write(self, chats: Sequence[Sequence[Mapping[str, str]]], seeds: Sequence[int]) -> list[str]:
        """One text per chat."""
        loaded = self._ready()
        tokenizer = loaded.tokenizer
        texts = [
            tokenizer.apply_chat_template(list(map(dict, chat)), tokenize=False, add_generation_prompt=True)
            for chat in chats
        ]
        ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        with torch.inference_mode():
            new = self._generate(loaded.model, ids, SeededDraw(seeds, self.sampling))
        return [str(text).strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _generate(self, model: Any, ids: Sequence[Sequence[int]], draw: SeededDraw) -> list[list[int]]:
        """New tokens of every row without the end token; rows that have ended are left out of further passes."""
        shared, cache = self._begun(model, ids)
        cache.batch_repeat_interleave(len(ids))
        width = max(map(len, ids)) - shared
        pads = torch.tensor([[width - (len(row) - shared)] for row in ids], device=model.device)
        places = torch.arange(shared + width, device=model.device)
        mask = ((places < shared) | (places >= shared + pads)).long()
        fed = torch.tensor([[0] * (width - len(row) + shared) + list(row[shared:]) for row in ids], device=model.device)
        positions = (places[shared:] - pads).clamp(min=shared)
        ends, rows = _end_ids(model), list(range(len(ids)))
        new: list[list[int]] = [[] for _ in ids]
        for _ in range(self.sampling.max_new_tokens):
            logits = model(
                fed, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            ).logits[:, -1]
            drawn = draw(logits, rows)
            going = [place for place, token in enumerate(drawn) if token not in ends]
            for place in going:
                new[rows[place]].append(drawn[place])
            if not going:
                break
            if len(going) < len(rows):
                kept = torch.tensor(going, device=model.device)
                cache.batch_select_indices(kept)
                mask, positions, rows = mask[kept], positions[kept], [rows[place] for place in going]
            fed = torch.tensor([[drawn[place]] for place in going], device=model.device)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            positions = positions[:, -1:] + 1
        return new

    def _begun(self, model: Any, ids: Sequence[Sequence[int]]) -> tuple[int, DynamicCache]:
        """The tokens that all rows begin with, run once and kept for further batches: how many, and their cache."""
        shared = _shared(ids)
        known = [start for start in self._starts if len(start) <= shared and start == tuple(ids[0][: len(start)])]
        start = max(known, key=len, default=tuple(ids[0][:shared]))
        if start not in self._starts:
            self._starts[start] = DynamicCache(config=model.config)
            if start:
                model(torch.tensor([start], device=model.device), past_key_values=self._starts[start], logits_to_keep=1)
        return len(start), copy.deepcopy(self._starts[start])


def _end_ids(model: Any) -> set[int]:
    found = model.generation_config.eos_token_id
    return set(found if isinstance(found, list) else [found])


def _shared(ids: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with, one less than the shortest row at most."""
    most = min(map(len, ids)) - 1
    return next((place for place in range(most) if any(row[place] != ids[0][place] for row in ids)), most)
