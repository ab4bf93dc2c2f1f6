"""Filling a prompt to its length: as many distractors as fit, the last one cut at a word boundary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from rhstudy.data.encode import Encoder
from rhstudy.data.facts import Passage
from rhstudy.data.layout import Layout

CLOSE_ENOUGH = 10
"""Tokens that may stay free instead of cutting a passage."""
LEAST_TEXT = 8
"""A cut passage keeps at least this many tokens of text."""
_LEAST_DRAWN = 32
_MOST_DRAWN = 1024
_LEADS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Filling:
    """Chosen distractors, most wanted first.

    Attributes:
        passages: the last one or two may be cut.
        num_tokens: what they are expected to add to the prompt, leads and separators included.
        num_cut: how many were cut.
        exhausted: whether the distractors ran out before the budget was spent.
    """

    passages: tuple[Passage, ...]
    num_tokens: int
    num_cut: int
    exhausted: bool


class Distractors:
    """A haystack's stream for one example, remembered so that it can be filled again with another budget."""

    def __init__(self, stream: Iterator[Passage], encoder: Encoder, layout: Layout) -> None:
        self._stream, self._encoder, self._layout = stream, encoder, layout
        self._has_leads = bool(layout.lead(1))
        self._drawn: list[tuple[Passage, int]] = []
        self._num_tokens = 0
        self._leads: dict[int, int] = {}

    def get(self, index: int, room: int = 0) -> tuple[Passage, int] | None:
        """Distractor `index` and its tokens without the lead; None when the stream has ended.

        Args:
            index: from 0, in the stream's order.
            room: tokens still to be filled: how many are drawn and tokenised together goes by it, which ones does not.
        """
        while index >= len(self._drawn):
            mean = self._num_tokens / len(self._drawn) if self._drawn else room
            count = min(max(int(room / max(mean, 1)) + 1, _LEAST_DRAWN), _MOST_DRAWN)
            chunk = list(islice(self._stream, count))
            if not chunk:
                return None
            costs = self.costs(chunk)
            self._drawn += zip(chunk, costs, strict=True)
            self._num_tokens += sum(costs)
        return self._drawn[index]

    def costs(self, passages: list[Passage]) -> list[int]:
        """Tokens of each passage with the separator, without the lead."""
        return self._encoder.counts([self._layout.body(passage) + self._layout.separator for passage in passages])

    def lead(self, number: int) -> int:
        """Tokens of what stands before passage `number` (from 1)."""
        if not self._has_leads:
            return 0
        if number not in self._leads:
            numbers = range(number, number + _LEADS_AT_ONCE)
            self._leads.update(zip(numbers, self._encoder.counts(list(map(self._layout.lead, numbers))), strict=True))
        return self._leads[number]

    def cut(self, passage: Passage, cost: int, room: int, at_words: bool) -> Passage:
        """`passage` with its text shortened so that it costs at most `room` instead of `cost`."""
        num_text = self._encoder.count(passage.text)
        return Passage(passage.title, self._encoder.cut(passage.text, num_text - (cost - room), at_words))


def fill(distractors: Distractors, budget: int, at_words: bool, num_gold: int = 1) -> Filling:
    """Choose distractors worth `budget` tokens, in their order.

    Whole ones are taken while they fit. The first that does not fit is cut; where there is not even room for a
    decent part of it, the one before it gives up some of its text.

    Args:
        distractors: the example's stream; the first numbers are the gold passages', so these count from there.
        budget: tokens to spend, >= 0.
        at_words: see `Encoder.cut`.
        num_gold: number of gold passages.
    """
    state = _State(distractors, at_words, gap=budget, num_gold=num_gold)
    index = 0
    while state.gap > CLOSE_ENOUGH:
        item = distractors.get(index, state.gap)
        if item is None:
            break
        if state.take_whole(*item):
            index += 1
        elif state.take_part(*item) or not state.make_room(item[0]):
            break
    exhausted = state.gap > CLOSE_ENOUGH and distractors.get(index) is None
    return Filling(tuple(passage for passage, _ in state.chosen), budget - state.gap, state.num_cut, exhausted)


@dataclass(slots=True)
class _State:
    """A prompt being filled: what was chosen, with its cost, and the tokens still free."""

    distractors: Distractors
    at_words: bool
    gap: int
    num_gold: int = 1
    chosen: list[tuple[Passage, int]] = field(default_factory=list)
    num_cut: int = 0

    def _lead(self) -> int:
        return self.distractors.lead(len(self.chosen) + self.num_gold + 1)

    def _room_for_text(self, passage: Passage) -> int:
        return self.gap - self._lead() - self.distractors.costs([Passage(passage.title, "")])[0]

    def _add(self, passage: Passage, cost: int) -> None:
        self.gap -= cost + self._lead()
        self.chosen.append((passage, cost))

    def take_whole(self, passage: Passage, cost: int) -> bool:
        """Add all of `passage` if it fits."""
        fits = cost + self._lead() <= self.gap
        if fits:
            self._add(passage, cost)
        return fits

    def take_part(self, passage: Passage, cost: int) -> bool:
        """Add as much of `passage` as fits, if that is at least `LEAST_TEXT` tokens of text."""
        if self._room_for_text(passage) < LEAST_TEXT:
            return False
        room = self.gap - self._lead()
        part = self.distractors.cut(passage, cost, room, self.at_words)
        if not part.text:  # the first word alone is too long
            part = self.distractors.cut(passage, cost, room, at_words=False)
        self._add(part, self.distractors.costs([part])[0])
        self.num_cut += 1
        return True

    def make_room(self, following: Passage) -> bool:
        """Shorten or drop the last chosen passage so that a part of `following` fits; False when there is none."""
        if not self.chosen:
            return False
        needed = LEAST_TEXT - self._room_for_text(following)
        passage, cost = self.chosen.pop()
        self.gap += cost + self._lead()
        part = self.distractors.cut(passage, cost, cost - needed, self.at_words)
        part_cost = self.distractors.costs([part])[0]
        if part.text and part_cost <= cost - needed:
            self._add(part, part_cost)
            self.num_cut += 1
        return True
