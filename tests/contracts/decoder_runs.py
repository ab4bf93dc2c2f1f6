"""Running a decoder under the observer, and the same quantities the slow way, for the decoder contract."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import dispatch_model
from reference.slow_scores import slow_score
from tiny_models import random_example, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rhstudy.heads.detect import detect
from rhstudy.models.anatomy import anatomy
from rhstudy.models.attention import make_observable
from rhstudy.models.batch import PaddedBatch, pad_batch
from rhstudy.models.decode import greedy
from rhstudy.models.generate import prefill, run_rows
from rhstudy.models.load import LoadedModel
from rhstudy.models.probe import ArgmaxObserver, observe
from rhstudy.seeding import generator
from rhstudy.types import Example, Span

LAYOUTS = {"one by one": (1, 0), "left-padded batch": (3, 0), "chunked prefill": (1, 17), "padded and chunked": (3, 16)}
MAX_NEW = 6
EPSILON = 2.0**-23


def scores_of(loaded: LoadedModel, chosen: Sequence[Example], mode: str, layout: str) -> np.ndarray:
    """What the package says, (examples, layers, heads); the one place of these tests that knows how it is asked."""
    batch_size, chunk = LAYOUTS[layout]
    return detect(
        loaded.model,
        loaded.tokenizer,
        chosen,
        mode=mode,
        batch_size=batch_size,
        chunk_tokens=chunk,
        max_new_tokens=MAX_NEW,
    ).score


@functools.cache
def model_of(family: str) -> LoadedModel:
    return tiny_model(family)


@functools.cache
def examples() -> tuple[Example, ...]:
    """Three examples; the needle of the last is its whole prompt, so that even short windows can hit."""
    rng = generator(5, "reference examples")
    *others, last = (random_example(rng, index, length=50 + 7 * index, answer=4 * index + 3) for index in range(3))
    return (*others, all_needle(last))


def all_needle(example: Example) -> Example:
    whole = Span(0, example.num_prompt_tokens)
    return dataclasses.replace(
        example, needles=(dataclasses.replace(example.needles[0], token_span=whole, answer_token_span=whole),)
    )


def spoken_examples(loaded: LoadedModel, draw: int, num: int = 6) -> list[tuple[Example, list[int]]]:
    """Examples whose gold answer is what the model says anyway, so that decoding can hit; with what it says."""
    pairs = []
    for index in range(num):
        example = random_example(generator(7, "speaking", draw, index), index, length=40 + index)
        start = prefill(loaded.model, pad_batch([example.prompt_ids], [[]], 0, loaded.model.device))
        spoken = greedy(loaded.model, start, max_new_tokens=MAX_NEW, stop_ids=frozenset({2}))[0]
        pairs.append((dataclasses.replace(all_needle(example), answer_ids=tuple(spoken or (3,))), spoken))
    return pairs


@dataclasses.dataclass(frozen=True)
class Slow:
    """Examples and the scores that nested loops over eager attention give them; some head hits somewhere."""

    examples: tuple[Example, ...]
    scores: np.ndarray


def slow(loaded: LoadedModel, mode: str) -> Slow:
    for draw in range(5):
        if mode == "decode":
            pairs = spoken_examples(loaded, draw)
        else:
            pairs = [(example, list(example.answer_ids)) for example in examples()]
        scores = np.asarray([slow_score(loaded.model, example, spoken)[0] for example, spoken in pairs])
        if (scores > 0).any():
            return Slow(tuple(example for example, _ in pairs), scores)
    raise AssertionError("the comparison is empty: no head ever hits")


@functools.cache
def slow_of(family: str, mode: str) -> Slow:
    return slow(model_of(family), mode)


def assert_same_hits(loaded: LoadedModel, expected: Slow, mode: str, layout: str) -> None:
    np.testing.assert_array_equal(scores_of(loaded, expected.examples, mode, layout), expected.scores)


def padded_batch(device: torch.device | str = "cpu") -> PaddedBatch:
    chosen = examples()
    prompts, answers = [item.prompt_ids for item in chosen], [item.answer_ids for item in chosen]
    return pad_batch(prompts, answers, 0, device)


def plain_logits(model: PreTrainedModel, implementation: str, chunk: int) -> Tensor:
    """Logits of the answer rows of the padded batch without the observer."""
    model.set_attn_implementation(implementation)
    batch = padded_batch(model.device)
    with torch.inference_mode():
        return run_rows(model, batch, first_row=batch.num_prompt - 1, chunk_tokens=chunk)


def observed_logits(model: PreTrainedModel, chunk: int) -> tuple[Tensor, Tensor]:
    """The same with the observer, and its j*: (layers, batch, heads, rows)."""
    batch = padded_batch(model.device)
    first = batch.num_prompt - 1
    rows = range(first, first + batch.num_answer)
    with torch.inference_mode(), observe(model, ArgmaxObserver(rows)) as observer:
        logits = run_rows(model, batch, first_row=first, chunk_tokens=chunk, observer=observer)
        return logits, observer.argmax().cpu()


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    return [model.get_submodule(name.rpartition(".")[0]) for name in anatomy(model).attention_names]


def spread(loaded: LoadedModel, first: str | int, second: str | int) -> LoadedModel:
    """`loaded` in two parts that run where they are: all but the last two layers on `first`, those on `second`."""
    names = {module: name for name, module in loaded.model.named_modules()}
    layers = layers_of(loaded.model)
    stack = names[layers[0]].rpartition(".")[0]
    places: dict[str, str | int] = {}
    for name in names.values():
        inside_layer = name.startswith(f"{stack}.") and name != stack
        above = stack.startswith(f"{name}.") or name in ("", stack)
        if not inside_layer and not above and not any(name.startswith(f"{placed}.") for placed in places):
            places[name] = first
    for index, layer in enumerate(layers):
        places[names[layer]] = first if index == 0 else second
    model = dispatch_model(loaded.model, places, main_device=first, force_hooks=True)
    return dataclasses.replace(loaded, model=model)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What one layer was given in one pass."""

    layer: int
    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None


@contextmanager
def recording(model: PreTrainedModel) -> Iterator[list[Recorded]]:
    """Everything the package's own attention function is given inside the block; what it does is unchanged."""
    make_observable(model)
    name, calls = model.config._attn_implementation, []
    inner = ALL_ATTENTION_FUNCTIONS[name]

    def outer(module, query, key, value, attention_mask, **kwargs):
        scaling = query.shape[3] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
        calls.append(Recorded(module.layer_idx, query, key, attention_mask, scaling, kwargs.get("softcap")))
        return inner(module, query, key, value, attention_mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register(name, outer)
    try:
        yield calls
    finally:
        ALL_ATTENTION_FUNCTIONS.register(name, inner)


def _float64_rows(call: Recorded, seen: int, rows: Sequence[int]) -> tuple[Tensor, Tensor, int]:
    """Logits of `rows` in float64, -inf where nothing is seen; how far float32 may be off; the first key's position."""
    new, num_keys = call.query.shape[2], call.key.shape[2]
    offset, local = seen + new - num_keys, [row - seen for row in rows]
    query = call.query[:, :, local].double()
    key = call.key.double().repeat_interleave(query.shape[1] // call.key.shape[1], dim=1)
    logits = query @ key.transpose(2, 3) * call.scaling
    error = (query.abs() @ key.abs().transpose(2, 3)) * abs(call.scaling) * (query.shape[3] + 4) * EPSILON
    if call.softcap is not None:
        logits = call.softcap * torch.tanh(logits / call.softcap)
        error = error + abs(call.softcap) * 4 * EPSILON
    if call.mask is None:
        positions = torch.arange(num_keys, device=query.device) + offset
        seen_keys = (positions[None] <= torch.tensor(rows, device=query.device)[:, None])[None, None]
    else:
        seen_keys = call.mask[:, :, local, :num_keys]
    return logits.masked_fill(~seen_keys, -torch.inf), error.amax(dim=-1), offset


def share_of_exact_argmax(model: PreTrainedModel, chunk: int) -> tuple[float, float]:
    """How the observer's j* compares with the lowest argmax in float64 of the very q and k the model used.

    Returns:
        (share that is the same position, share that is the same or within float32 rounding of the largest logit).
    """
    with recording(model) as calls:
        _, found = observed_logits(model, chunk)
    first = padded_batch().num_prompt - 1
    rows, same, close = range(first, first + found.shape[3]), [], []
    ends: dict[int, int] = {}
    for call in calls:
        seen = ends.get(call.layer, 0)
        ends[call.layer] = seen + call.query.shape[2]
        here = [row for row in rows if seen <= row < ends[call.layer]]
        if not here:
            continue
        logits, error, offset = _float64_rows(call, seen, here)
        top = logits.amax(dim=-1, keepdim=True)
        lowest = (logits == top).int().argmax(dim=-1) + offset
        chosen = found[call.layer][:, :, [row - first for row in here]].to(logits.device)
        gap = top[..., 0] - logits.gather(3, (chosen - offset)[..., None])[..., 0]
        same.append((chosen == lowest).double().flatten())
        close.append(((chosen == lowest) | (gap <= 2 * error)).double().flatten())
    return float(torch.cat(same).mean()), float(torch.cat(close).mean())
