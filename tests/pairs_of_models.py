"""Two fine-tuned models of one base, and the slow obvious way to patch: forward hooks before the output projections."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from tiny_models import tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from rhstudy.models.anatomy import attention_modules
from rhstudy.models.load import LoadedModel
from rhstudy.types import Head


def tuned_again(loaded: LoadedModel, seed: int) -> LoadedModel:
    """A copy whose attention weights were moved a little."""
    model = copy.deepcopy(loaded.model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, module in attention_modules(model).values():
            for weight in module.parameters():
                weight.mul_(1 + 0.5 * torch.randn(weight.shape, generator=draw))
    return dataclasses.replace(loaded, model=model, digest=f"{loaded.digest} tuned {seed}")


def pair(family: str) -> tuple[LoadedModel, LoadedModel]:
    """(donor, recipient)."""
    base = tiny_model(family)
    return tuned_again(base, 1), tuned_again(base, 2)


def output_projections(model: PreTrainedModel) -> list[nn.Module]:
    names = ("o_proj", "dense", "c_proj")
    return [
        next(getattr(module, name) for name in names if hasattr(module, name))
        for _, module in attention_modules(model).values()
    ]


@contextmanager
def projection_inputs(model: PreTrainedModel, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Let `change` (layer, flat z) replace what each output projection is given."""
    handles = [
        module.register_forward_pre_hook(lambda _, args, layer=layer: (change(layer, args[0]),))
        for layer, module in enumerate(output_projections(model))
    ]
    yield
    for handle in handles:
        handle.remove()


def slow_logits(
    donor: PreTrainedModel, recipient: PreTrainedModel, ids: Sequence[int], heads: Iterable[Head], first_row: int
) -> Tensor:
    """Logits of one whole unpadded sequence, without a cache, donor's z put in from `first_row` on."""
    kept: dict[int, Tensor] = {}
    tokens = torch.tensor([list(ids)])

    def keep(layer: int, flat: Tensor) -> Tensor:
        kept[layer] = flat.clone()
        return flat

    def put_in(layer: int, flat: Tensor) -> Tensor:
        dim = flat.shape[-1] // recipient.config.num_attention_heads
        changed = flat.clone()
        for where, head in heads:
            if where == layer:
                part = slice(head * dim, (head + 1) * dim)
                changed[:, first_row:, part] = kept[layer][:, first_row:, part]
        return changed

    with torch.inference_mode():
        with projection_inputs(donor, keep):
            donor(tokens)
        with projection_inputs(recipient, put_in):
            return recipient(tokens).logits[0].float()


def slow_answer(
    donor: PreTrainedModel,
    recipient: PreTrainedModel,
    prompt: Sequence[int],
    gold: Sequence[int],
    heads: Sequence[Head],
    positions: str,
    num_new: int,
) -> tuple[float, list[int]]:
    """(mean loss of the gold answer, greedy answer): the whole sequence anew in both models for every token."""
    first = 0 if positions == "all_positions" else len(prompt) - 1
    logits = slow_logits(donor, recipient, [*prompt, *gold], heads, first)
    chances = logits[len(prompt) - 1 : -1].log_softmax(-1)
    loss = -float(chances[range(len(gold)), list(gold)].mean())
    said: list[int] = []
    for _ in range(num_new):
        logits = slow_logits(donor, recipient, [*prompt, *said], heads, first)
        said.append(int(logits[-1].argmax()))
    return loss, said
