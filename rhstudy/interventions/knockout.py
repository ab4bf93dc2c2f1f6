"""Attention knockout: chosen heads put out nothing, and what the model can no longer do was done through them.

With z[l, h, t] = sum_j a[l, h, t, j] v[l, h, j] what head h of layer l puts out at row t before o_proj, V(t) the
positions that row t may see (causal, not padding, inside a sliding window), K the needle spans, and S the heads knocked
out, for (l, h) in S at every row t run inside the block:

    zero_output        z[l, h, t] = 0
    mean_output        z[l, h, t] = mean of z[l, h] over all positions of given prompts  (`interventions.means`)
    uniform_attention  z[l, h, t] = 1/|V(t)| sum_{j in V(t)} v[l, h, j]                  all logits made equal
    block_needle       a[l, h, t] = softmax over V(t) without K                          the edge answer row -> needle

o_proj then adds to the residual stream what the other heads of the layer put out, and what replaces S (a bias of o_proj
stays). Keys and values are untouched: rows run before the block keep theirs, and other query heads that share a
key/value head with S go on as before. Under `block_needle` rows up to a needle's end go on seeing that needle.

The scope of a condition says what is run inside the block:

    decode              the last prompt token, which predicts the first answer token, and all after it
    prefill_and_decode  every row
    published_decode    the answer's own tokens alone, not the last prompt row: the quirk of published code

Published code differs: the masking program of Wu et al. 2024 (arXiv 2404.15574) sets the *query* of a head to 0. That
does not remove the head: all logits become equal, so it puts out the plain mean of the values it may see. It acts at
decoding steps alone, without the last prompt row that predicts the first answer token. Mode ``uniform_attention`` with
scope ``published_decode`` is what it computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from rhstudy.errors import require
from rhstudy.models.anatomy import Anatomy, anatomy, base_model, require_heads
from rhstudy.models.attention import Attend, AttentionInputs, edit_attention, hidden_keys
from rhstudy.shapes import Bool, Float
from rhstudy.types import Head, Span

KnockoutMode = Literal["zero_output", "mean_output", "uniform_attention", "block_needle"]
KnockoutScope = Literal["decode", "prefill_and_decode", "published_decode"]
"""``decode`` begins with the last prompt token, the row that predicts the first answer token."""
MODES: tuple[str, ...] = get_args(KnockoutMode)
SCOPES: tuple[str, ...] = get_args(KnockoutScope)

Spans = Sequence[Sequence[Span]]
"""Needle spans of each example, as positions in the padded batch (`rhstudy.interventions.answering.needle_spans`)."""


@contextmanager
def knock_out(
    model: PreTrainedModel,
    heads: Iterable[Head],
    mode: KnockoutMode | str = "zero_output",
    *,
    means: Float[Tensor, "layers heads dim"] | None = None,
    needles: Spans | None = None,
) -> Iterator[None]:
    """Knock `heads` out of `model` for the forward passes inside the block; see the module docstring.

    No head at all changes nothing: the logits are those of the plain model, bit for bit.

    Args:
        model: any decoder whose heads can be observed.
        heads: (layer, query head) pairs; repeats count once.
        mode: what a knocked-out head puts out instead.
        means: for ``mean_output``; of this model, see `rhstudy.interventions.means.head_means`.
        needles: for ``block_needle``; of each example of the batches run inside.

    Raises:
        InputError: an unknown mode, a head that the model does not have, or no means or needles where the mode needs
            them.
    """
    with knock_out_forks(model, [(heads, mode)], means=means, needles=needles):
        yield


@contextmanager
def knock_out_forks(
    model: PreTrainedModel,
    knockouts: Sequence[tuple[Iterable[Head], KnockoutMode | str]],
    *,
    means: Float[Tensor, "layers heads dim"] | None = None,
    needles: Spans | None = None,
) -> Iterator[None]:
    """As `knock_out`, each fork of every example with heads and a mode of its own.

    Args:
        model: any decoder whose heads can be observed.
        knockouts: heads and mode of each of the C forks; batches run inside have B x C rows (`rhstudy.models.forks`).
        means: as in `knock_out`.
        needles: of each of the B examples.

    Raises:
        InputError: as `knock_out`.
    """
    layout = anatomy(model)
    chosen = [(sorted(set(heads)), str(mode)) for heads, mode in knockouts]
    for heads, mode in chosen:
        require_mode(mode)
        require_heads(layout, heads)
    used = {mode for _, mode in chosen}
    if "mean_output" in used:
        _require_means(means, layout)
    if "block_needle" in used:
        given = bool(needles) and all(needles or ())
        remedy = "Give the needle spans of each example as positions in the padded batch"
        require(given, "needles", "hold a span for each example under block_needle", needles, remedy)
    edit = _Knockouts(model, chosen, means, needles if "block_needle" in used else None)
    hook = base_model(model).register_forward_pre_hook(edit.begin_pass, with_kwargs=True)
    try:
        with edit_attention(model, edit):
            yield
    finally:
        hook.remove()


def require_mode(mode: str, scope: str = "decode") -> None:
    """Refuse modes and scopes that are not there, and `block_needle` before the answer.

    Raises:
        InputError: see above.
    """
    require(mode in MODES, "knockout.mode", f"be one of {', '.join(MODES)}", mode, "Choose what replaces z")
    require(scope in SCOPES, "knockout.scope", f"be one of {', '.join(SCOPES)}", scope, "Choose where heads are out")
    answers = mode != "block_needle" or scope != "prefill_and_decode"
    remedy = "The needle is hidden from answer rows; the prompt goes on reading it"
    require(answers, "knockout.scope", "begin with the answer rows under block_needle", scope, remedy)


def _require_means(means: Tensor | None, layout: Anatomy) -> None:
    wanted, remedy = (layout.num_layers, layout.num_heads), "Compute head_means of this very model"
    require(means is not None, "means", "be given under mean_output", None, remedy)
    shape = () if means is None else tuple(means.shape)
    require(len(shape) == 3 and shape[:2] == wanted, "means", f"have shape {(*wanted, 'dim')}", shape, remedy)


class _Knockouts:
    """The attention of every layer with heads of C forks knocked out.

    Args:
        model: where the heads are.
        knockouts: sorted heads and mode of each fork.
        means: of z, where a mode needs it.
        needles: spans of each example, where a mode needs them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        knockouts: Sequence[tuple[Sequence[Head], str]],
        means: Tensor | None,
        needles: Spans | None,
    ) -> None:
        device, layout = model.device, anatomy(model)
        self._num_forks = len(knockouts)
        self._chosen = {mode: _by_layer(knockouts, mode, layout.num_heads, device) for mode in MODES}
        self._means = None if means is None else means.to(device)
        self._num_examples = len(needles or ())
        self._starts, self._ends = (_bounds(needles or (), side, device) for side in (0, 1))
        self._cache: Cache | None = None
        self._blocked: tuple[tuple[object, ...], Tensor | None, Tensor] | None = None

    def begin_pass(self, _: nn.Module, __: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note the cache of the pass that begins: it knows which keys a sliding window has dropped."""
        self._cache, self._blocked = kwargs.get("past_key_values"), None

    def __call__(self, layer: int, inputs: AttentionInputs, attend: Attend) -> Tensor:
        """z of a layer; see `rhstudy.models.attention.AttentionEdit`."""
        uniform, blocked, zero, mean = (
            self._of(mode, layer, inputs.query.device)
            for mode in ("uniform_attention", "block_needle", "zero_output", "mean_output")
        )
        if uniform is not None:
            equal = self._apart(inputs.query).masked_fill(uniform[:, :, None, None], 0.0)
            inputs = inputs._replace(query=equal.reshape(inputs.query.shape))
        z = attend(inputs)
        if blocked is not None:
            without = attend(inputs._replace(mask=self._mask_without_needles(layer, inputs)))
            z = torch.where(blocked[:, None, :, None], self._apart(without), self._apart(z)).reshape(z.shape)
        if zero is not None:
            z = self._apart(z).masked_fill(zero[:, None, :, None], 0.0).reshape(z.shape)
        if mean is not None and self._means is not None:
            means = self._means[layer].to(z)
            remedy = "Compute head_means of this very model"
            require(means.shape[-1] == z.shape[-1], "means", f"have dim {z.shape[-1]}", means.shape[-1], remedy)
            z = torch.where(mean[:, None, :, None], means, self._apart(z)).reshape(z.shape)
        return z

    def _of(self, mode: str, layer: int, device: torch.device) -> Bool[Tensor, "forks heads"] | None:
        chosen = self._chosen[mode].get(layer)
        return None if chosen is None else chosen.to(device)

    def _apart(self, z: Tensor) -> Float[Tensor, "examples forks rows heads dim"]:
        return z.reshape(-1, self._num_forks, *z.shape[1:])

    def _mask_without_needles(self, layer: int, inputs: AttentionInputs) -> Tensor:
        """The mask of this pass with the needles hidden, made once for all layers that look alike."""
        offset = self._first_key(layer, inputs.key.shape[2])
        alike = (id(inputs.mask), offset, inputs.query.shape, inputs.key.shape, inputs.key.device)
        if self._blocked is None or self._blocked[0] != alike:
            self._blocked = alike, inputs.mask, self._make_mask(offset, inputs)
        return self._blocked[2]

    def _first_key(self, layer: int, num_keys: int) -> int:
        """Position of the oldest key that is still there."""
        held: Any = None if self._cache is None else self._cache.layers[layer]
        return int(held.get_seq_length()) - num_keys if getattr(held, "is_sliding", False) else 0

    def _make_mask(self, offset: int, inputs: AttentionInputs) -> Tensor:
        query, key, _, mask = inputs
        examples, num_new, num_keys, device = len(key), query.shape[2], key.shape[2], key.device
        remedy = "Give the spans of every example of the batch"
        require(examples == self._num_examples, "needles", f"be {examples} lists", self._num_examples, remedy)
        positions = torch.arange(num_keys, device=device) + offset
        forked = mask is not None and mask.shape[2] != num_new
        # Forks come behind the prompts: every row of theirs lies behind every needle.
        own = positions[-1:] if forked else positions[num_keys - num_new :]
        hidden = torch.zeros(examples, len(own), num_keys, dtype=torch.bool, device=device)
        for starts, ends in zip(self._starts.to(device).T, self._ends.to(device).T, strict=True):
            inside = (positions >= starts[:, None]) & (positions < ends[:, None])
            hidden |= inside[:, None] & (own >= ends[:, None])[:, :, None]
        if mask is None:
            mask = ~hidden_keys(None, range(num_new), num_new, num_keys, device)
        mask = mask[..., :num_keys]
        if mask.dtype == torch.bool:
            return mask & ~hidden[:, None]
        return mask.masked_fill(hidden[:, None], float("-inf"))


def _by_layer(
    knockouts: Sequence[tuple[Sequence[Head], str]], mode: str, num_heads: int, device: torch.device
) -> dict[int, Bool[Tensor, "forks heads"]]:
    """The heads of each fork that are knocked out in this mode, layers without any left out."""
    found: dict[int, Tensor] = {}
    for fork, (heads, own) in enumerate(knockouts):
        for layer, head in heads if own == mode else ():
            empty = torch.zeros(len(knockouts), num_heads, dtype=torch.bool)
            found.setdefault(layer, empty)[fork, head] = True
    return {layer: chosen.to(device) for layer, chosen in found.items()}


def _bounds(needles: Spans, side: int, device: torch.device) -> Tensor:
    """(examples, spans) starts or ends; examples with fewer spans repeat their last one."""
    most = max((len(spans) for spans in needles), default=0)
    rows = [[spans[min(number, len(spans) - 1)][side] for number in range(most)] for spans in needles]
    return torch.tensor(rows, dtype=torch.long, device=device).reshape(len(rows), most)
