"""Greedy answers and gold-answer losses of a batch of examples, both from one run of each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from rhstudy.configs import NO_DIGEST, require_at_least
from rhstudy.errors import InputError
from rhstudy.evaluation.answers import mark_example
from rhstudy.models.attention import make_observable
from rhstudy.models.batch import pad_batch
from rhstudy.models.cache import examples_that_fit
from rhstudy.models.decode import greedy
from rhstudy.models.generate import gold_nll, prefill, stop_token_ids
from rhstudy.models.load import LoadedModel
from rhstudy.types import Example, Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweringSettings:
    """How answers are generated; always greedy.

    Attributes:
        num_examples: how many rows, from the first; 0 = all.
        max_new_tokens: longest answer; where documents are cited, twice the gold answer's tokens if that is more.
        batch_size: examples decoded together; 0 = as many as fit, at most 32 on a GPU and 8 on a CPU. Changes
            results by no more than float rounding.
        chunk_tokens: prefill in chunks of this many tokens; 0 = one pass.
    """

    num_examples: int = 0
    max_new_tokens: int = 20
    batch_size: int = field(default=0, metadata=NO_DIGEST)
    chunk_tokens: int = field(default=0, metadata=NO_DIGEST)

    def groups(self, model: PreTrainedModel, examples: Sequence[Example]) -> list[Sequence[Example]]:
        """The examples in batches."""
        longest = max((example.num_prompt_tokens + self.num_new_tokens(example) for example in examples), default=0)
        size = self.batch_size or examples_that_fit(model, longest)
        return [examples[start : start + size] for start in range(0, len(examples), size)]

    def num_new_tokens(self, example: Example) -> int:
        """The longest answer to `example`; a list of documents may be twice as long as the gold one."""
        return max(self.max_new_tokens, 2 * len(example.answer_ids) if example.metadata.get("cites") else 0)

    def __post_init__(self) -> None:
        require_at_least(self, "answering", num_examples=0, max_new_tokens=1, batch_size=0, chunk_tokens=0)


def limited(generated: Sequence[list[int]], group: Sequence[Example], settings: AnsweringSettings) -> list[list[int]]:
    """Generated tokens of a batch, each cut to its own example's limit, so that no answer depends on its batch."""
    return [tokens[: settings.num_new_tokens(example)] for tokens, example in zip(generated, group, strict=True)]


@torch.inference_mode()
def answer_group(loaded: LoadedModel, group: Sequence[Example], settings: AnsweringSettings) -> list[Prediction]:
    """Answer one batch and mark it.

    Every prompt is run once; the loss of its gold answer and the model's own answer go on from there.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    with suppress(InputError):  # its own attention will do, more slowly
        make_observable(model)
    prompts = [example.prompt_ids for example in group]
    batch = pad_batch(prompts, [[]] * len(group), loaded.pad_id, model.device)
    start = prefill(model, batch, chunk_tokens=settings.chunk_tokens)
    losses = gold_nll(model, start, [example.answer_ids for example in group])
    stops = stop_token_ids(model, tokenizer.eos_token_id)
    generated = greedy(model, start, max_new_tokens=max(map(settings.num_new_tokens, group)), stop_ids=stops)
    return [
        mark_example(
            example,
            str(tokenizer.decode(tokens, skip_special_tokens=True)),
            gold_nll=loss,
            num_new_tokens=len(tokens),
        )
        for example, tokens, loss in zip(group, limited(generated, group, settings), losses.tolist(), strict=True)
    ]
