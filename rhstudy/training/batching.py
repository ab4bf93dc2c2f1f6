"""Which examples of a step go through the model together: sorted by length, as many as fit, so padding stays small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rhstudy.types import Example

PASS_TOKENS = 32768
"""Tokens of a forward pass, padding included, at which a GPU is busy whatever the model."""

_SLACK = PASS_TOKENS // 16
"""A pass takes so many more: 8 x 4,096 prompt tokens and their answers are one pass, not one of 7 and one of 1."""

ENOUGH_TOKENS = 8192
"""Below this a pass is not cut further to save memory before activations are recomputed instead."""


def num_sequence_tokens(example: Example) -> int:
    """Tokens an example is trained on: prompt, answer and end token."""
    return len(example.prompt_ids) + len(example.answer_ids) + 1


@dataclass(slots=True, kw_only=True)
class PassSize:
    """How large forward passes are, shrunk when memory runs out.

    Attributes:
        max_examples: of one process in a pass.
        max_tokens: of one process in a pass, padding included; one example is always taken.
        is_fixed: whether the caller asked for `max_examples`.
    """

    max_examples: int
    max_tokens: int
    is_fixed: bool

    def groups(self, examples: Sequence[Example], num_processes: int = 1) -> list[list[Example]]:
        """`examples`, longest first, in the groups that `num_processes` processes take through the model together."""
        ordered = sorted(examples, key=num_sequence_tokens, reverse=True)
        groups = self._cut(ordered, self.max_examples, num_processes)
        # Of 8 examples 4 and 4 rather than 6 and 2: a small pass leaves a GPU idle.
        even = math.ceil(len(ordered) / (num_processes * max(1, len(groups))))
        evened = self._cut(ordered, min(even, self.max_examples), num_processes) if groups else groups
        return evened if len(evened) == len(groups) else groups

    def _cut(self, ordered: Sequence[Example], max_examples: int, num_processes: int) -> list[list[Example]]:
        groups: list[list[Example]] = []
        start = 0
        while start < len(ordered):
            longest = num_sequence_tokens(ordered[start])
            size = num_processes * max(1, min(max_examples, self.max_tokens // longest))
            groups.append(list(ordered[start : start + size]))
            start += size
        return groups

    def shrink(self, examples: Sequence[Example], *, least_tokens: int = 1) -> bool:
        """Halve passes over `examples`; False, and nothing done, when they are as small as they may be."""
        largest = max(len(group) for group in self.groups(examples))
        tokens = largest * max(map(num_sequence_tokens, examples))
        if self.is_fixed or largest == 1 or tokens <= least_tokens:
            return False
        self.max_examples = math.ceil(largest / 2)
        return True


def pass_size(micro_batch_size: int, *, on_gpu: bool) -> PassSize:
    """`micro_batch_size` examples a pass; 0 is `PASS_TOKENS` on a GPU, and one example on a CPU."""
    fixed = micro_batch_size > 0
    examples = micro_batch_size or (10**9 if on_gpu else 1)
    return PassSize(max_examples=examples, max_tokens=10**12 if fixed else PASS_TOKENS + _SLACK, is_fixed=fixed)
