"""Making a file of rewritten needles: prompts out, texts in, verdicts and a recording that can be gone on with.

The order of all batches follows from the items and the verdicts so far, so a killed run is continued by replaying its
file: batches that stand there whole are not asked for again, and their verdicts stand, also those of checks that were
less strict. Line 1 of the file is its header: the task, the seed, who wrote and the prompts; every further line is one
text with the reason why it was refused (empty: accepted).
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rhstudy.data.recorded_needles import KIND, VERSIONS, parse_line
from rhstudy.data.rewritten import (
    REPEATS,
    OtherAnswers,
    RewriteItem,
    RewriteTask,
    check_rewrite,
    rewrite_items,
    usable_items,
)
from rhstudy.errors import InputError, StudyError, message, require
from rhstudy.seeding import stream_seed

MAX_ATTEMPTS = 3
SPARE = 3.0
"""Items drawn per needle wanted: what is refused `MAX_ATTEMPTS` times is given up."""

SYSTEM = (
    "You word facts for {voice}. Answer with one or two sentences that state the given fact in new words and make it "
    "vivid. Spell its names and numbers exactly as given, each once. Never add other names, dates, ages or numbers."
)
VOICES: Mapping[str, tuple[str, Sequence[tuple[str, str]]]] = {
    "encyclopedia": (
        "an encyclopedia",
        (
            ("Ana Costa works for Brook Ltd.", "Known among colleagues for her patience, Ana Costa has spent her whole "
             "working life at Brook Ltd, where she looks after the oldest customers."),
            ("Brook Ltd has its headquarters in Port Elia.", "From a brick building near the harbour of Port Elia, "
             "where it has its headquarters, Brook Ltd runs all of its business."),
            ("Omar Lind graduated in 1987.", "After four hard years at the faculty, Omar Lind finally graduated in the "
             "summer of 1987."),
        ),
    ),
    "newspaper": (
        "a local newspaper",
        (
            ("The profession of Ana Costa is glass blower.", "Fire and sand have never frightened Ana Costa, who has "
             "earned her living as a glass blower for as long as the neighbours can remember."),
            ("Harbour Union found that 34 percent of the ferries in Port Elia run empty.", "In Port Elia, ferries "
             "often cross the bay with nobody on board: as many as 34 percent run empty, as a study by Harbour "
             "Union found."),
            ("Omar Lind was born in Port Elia.", "It was a stormy night in Port Elia when Omar Lind was born, the "
             "youngest child of a family of sailors."),
        ),
    ),
    "biography": (
        "a biography",
        (
            ("Omar Lind is married to Ana Costa.", "At a small dance by the river he met the woman of his life, and "
             "soon afterwards Omar Lind was married to Ana Costa."),
            ("Brook Ltd was founded by Omar Lind.", "With little more than a borrowed desk and a good idea, Omar Lind "
             "founded Brook Ltd and made it known across the country."),
            ("Ana Costa grew up speaking Welsh.", "In the kitchen of her grandmother nothing but Welsh was spoken, and "
             "Ana Costa grew up speaking it long before she went to school."),
        ),
    ),
    "guide": (
        "a travel guide",
        (
            ("Ana Costa lives on Mill Lane.", "Those who stroll along Mill Lane may well meet Ana Costa, who lives "
             "there in a narrow house with green shutters."),
            ("Baker Ana Costa sold 72 percent of the bread in Port Elia.", "Get up early if you are hungry in Port "
             "Elia: of all the bread that is sold there, 72 percent comes from the oven of the baker Ana Costa."),
            ("Brook Ltd was founded in 1904.", "The proud sign above the gate tells every visitor that Brook Ltd was "
             "founded as early as 1904, when the street was still a field."),
        ),
    ),
}  # fmt: skip
"""Voice -> who is written for, and examples. One voice a batch, so that all its prompts begin alike."""

SHOT_NAMES = ("Omar Lind", "Ana Costa", "Brook Ltd", "Port Elia", "Harbour Union", "Mill Lane")
"""Names of the examples, which a small model likes to use again."""

Message = Mapping[str, str]


@runtime_checkable
class Writer(Protocol):
    """A language model that answers chats."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What wrote: plain values that tell two writers apart (name, sha256 of the weights, sampling)."""

    def write(self, chats: Sequence[Sequence[Message]], seeds: Sequence[int]) -> list[str]:
        """One answer per chat; equal chats and seeds give equal answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a file of rewritten needles is to hold.

    Attributes:
        task: whose facts.
        seed: of facts and sampling, >= 0.
        num_needles: distinct accepted wordings to stop at.
        batch_size: texts asked for at once; part of the recording, since a model may round otherwise in other batches.
    """

    task: RewriteTask = "mdqa"
    seed: int = 0
    num_needles: int = 500
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("num_needles", 1), ("batch_size", 1)):
            require(getattr(self, name) >= least, name, f"be at least {least}", getattr(self, name), "Raise it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a plan.

    Attributes:
        num_texts: texts that were written.
        num_accepted: of which state their fact and nothing else's answer, repeats among them.
        num_needles: distinct accepted wordings that needles are made of.
        reasons: reason -> how many texts were refused for it.
    """

    num_texts: int
    num_accepted: int
    num_needles: int
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def acceptance_rate(self) -> float:
        """Accepted share of all texts; needs at least one."""
        return self.num_accepted / self.num_texts


def chat(item: RewriteItem, voice: str) -> list[Message]:
    """The conversation that asks for one wording of `item`."""
    reader, shots = VOICES[voice]
    turns = [{"role": "system", "content": SYSTEM.format(voice=reader)}]
    for fact, wording in shots:
        turns += [{"role": "user", "content": fact}, {"role": "assistant", "content": wording}]
    return [*turns, {"role": "user", "content": item.statement}]


def rewrite(plan: Plan, writer: Writer, path: Path, progress: Callable[[Outcome], None] | None = None) -> Outcome:
    """Write wordings into `path` until the plan is met; goes on where an earlier try stopped.

    Args:
        plan: what is wanted.
        writer: the model.
        path: the recording, made or continued.
        progress: called after each batch.

    Raises:
        InputError: `path` is the recording of another plan or writer.
        StudyError: every item was tried `MAX_ATTEMPTS` times and too few texts passed.
    """
    items = rewrite_items(plan.task, plan.seed, round(plan.num_needles * SPARE))
    recording, state = _Recording(path, _header(plan, writer.identity)), _State(items)
    for number, batch in enumerate(state.batches(plan, passed_over=1 if recording.version == 1 else 0)):
        rows = recording.rows(batch)
        if rows is not None:
            state.replay(batch, rows)
        else:
            recording.add(state.judge(batch, _written(plan, writer, batch, number)))
        if progress is not None:
            progress(state.outcome())
    outcome = state.outcome()
    if outcome.num_needles < plan.num_needles:
        remedy = "Use a more capable model: " + ", ".join(f"{why} {n}" for why, n in list(outcome.reasons.items())[:4])
        got = f"<{outcome.num_needles} of {outcome.num_texts} texts>"
        raise StudyError(message("rewritten needles", f"pass {plan.num_needles} times", got, remedy, str(path)))
    return outcome


def _written(plan: Plan, writer: Writer, batch: Sequence[tuple[RewriteItem, int]], number: int) -> list[str]:
    voice = list(VOICES)[number % len(VOICES)]
    chats = [chat(item, voice) for item, _ in batch]
    seeds = [stream_seed(plan.seed, "rewrite", item.item_id, attempt) for item, attempt in batch]
    texts = writer.write(chats, seeds)
    require(len(texts) == len(batch), "writer", f"answer each of {len(batch)} chats", len(texts), "Mend the writer")
    return [" ".join(text.split()) if "\n" not in text.strip() else text.strip() for text in texts]


class _State:
    """Which items still wait, what was accepted, why the rest was not."""

    def __init__(self, items: Sequence[RewriteItem]) -> None:
        examples = [wording for _, shots in VOICES.values() for _, wording in shots]
        self._items, self._others = items, OtherAnswers(items, SHOT_NAMES, examples)
        self._accepted: dict[str, str] = {}
        self._num_accepted = 0
        self._seen: set[str] = set()
        self._reasons: Counter[str] = Counter()
        self._num_texts = 0
        self._again: deque[tuple[RewriteItem, int]] = deque()

    def batches(self, plan: Plan, passed_over: int = 0) -> Iterator[list[tuple[RewriteItem, int]]]:
        """Batches until enough was accepted or nothing is left: what was refused first, then new items in order.

        Args:
            plan: what is wanted.
            passed_over: new items left out after each batch.
        """
        fresh = iter(self._items)
        while self.outcome().num_needles < plan.num_needles:
            batch = [self._again.popleft() for _ in range(min(plan.batch_size, len(self._again)))]
            batch += [(item, 0) for item in itertools.islice(fresh, plan.batch_size - len(batch))]
            list(itertools.islice(fresh, passed_over))
            if not batch:
                return
            yield batch

    def judge(self, batch: Sequence[tuple[RewriteItem, int]], texts: Sequence[str]) -> list[dict[str, Any]]:
        """Count a batch's texts; refused ones wait for another try. Returns the rows of the recording."""
        return [self._judge_one(item, attempt, text) for (item, attempt), text in zip(batch, texts, strict=True)]

    def replay(self, batch: Sequence[tuple[RewriteItem, int]], rows: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch that was written before, with its own verdicts; what today's checks refuse is no needle."""
        for (item, attempt), row in zip(batch, rows, strict=True):
            text = str(row["text"])
            now = self._reason(text, item)
            self._count(item, text, row["refused"] or now)
            self._wait(item, attempt, row["refused"])

    def _judge_one(self, item: RewriteItem, attempt: int, text: str) -> dict[str, Any]:
        reason = self._reason(text, item)
        self._count(item, text, reason)
        self._wait(item, attempt, reason)
        row = {"id": item.item_id, "attempt": attempt, "text": text, "refused": reason}
        return row if attempt else {**row, **_asked(item)}

    def _reason(self, text: str, item: RewriteItem) -> str:
        return check_rewrite(text, item, self._others) or ("seen before" if text in self._seen else "")

    def _count(self, item: RewriteItem, text: str, reason: str) -> None:
        self._num_texts += 1
        self._num_accepted += reason in ("", *REPEATS)
        if not reason:
            self._accepted[item.item_id] = text
            self._seen.add(text)
        else:
            self._reasons[reason.split(maxsplit=1)[0] if reason.startswith(("misses", "holds")) else reason] += 1

    def _wait(self, item: RewriteItem, attempt: int, reason: str) -> None:
        if reason and attempt + 1 < MAX_ATTEMPTS:
            self._again.append((item, attempt + 1))

    def outcome(self) -> Outcome:
        """The counts so far."""
        return Outcome(
            num_texts=self._num_texts,
            num_accepted=self._num_accepted,
            num_needles=len(usable_items(self._accepted, self._items)),
            reasons=dict(self._reasons.most_common()),
        )


def _header(plan: Plan, writer: Mapping[str, Any]) -> dict[str, Any]:
    prompts = {voice: {"system": SYSTEM.format(voice=reader), "examples": [list(shot) for shot in shots]}
               for voice, (reader, shots) in VOICES.items()}  # fmt: skip
    return {
        "kind": KIND,
        "version": VERSIONS[-1],
        "task": plan.task,
        "seed": plan.seed,
        "num_needles": plan.num_needles,
        "batch_size": plan.batch_size,
        "max_attempts": MAX_ATTEMPTS,
        "writer": dict(writer),
        "faker": importlib.metadata.version("Faker"),
        "prompts": prompts,
    }


def _asked(item: RewriteItem) -> dict[str, Any]:
    return {
        "group": item.group,
        "statement": item.statement,
        "required": list(item.required),
        "answer": item.answer,
        "copied": item.copied,
        "facts": dict(item.facts),
    }


def _line(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, ensure_ascii=False) + "\n").encode()


class _Recording:
    """A recording that is read from its start and, where it ends or is torn, written on."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        self._lines = [line for line in lines if line.endswith(b"\n")]
        if not self._lines:
            self._lines = [_line(header)]
            path.write_bytes(self._lines[0])
        found, wanted = parse_line(self._lines[0], path, 1), json.loads(_line(header))
        known = found.get("version") in VERSIONS
        changed = [key for key in wanted if key not in ("faker", "version") and found.get(key) != wanted[key]]
        remedy = "Give another file, or the config that began this one"
        require(
            known and not changed,
            "output",
            "be the recording of this very config and writer",
            changed,
            remedy,
            str(path),
        )
        self.version = found["version"]
        self._next = 1

    def rows(self, batch: Sequence[tuple[RewriteItem, int]]) -> list[dict[str, Any]] | None:
        """The rows of the next batch; None when they do not stand there whole: whatever does is cut off.

        Raises:
            InputError: other items stand there, or a row without text or verdict.
        """
        lines = self._lines[self._next : self._next + len(batch)]
        if len(lines) < len(batch):
            del self._lines[self._next :]
            with self._path.open("r+b") as file:
                file.truncate(sum(map(len, self._lines)))
            return None
        rows = [parse_line(line, self._path, self._next + 1 + index) for index, line in enumerate(lines)]
        found = [(row.get("id"), row.get("attempt"), row.get("statement")) for row in rows]
        wanted = [(item.item_id, attempt, None if attempt else item.statement) for item, attempt in batch]
        where = f"{self._path}, from line {self._next + 1}"
        place = next((place for place in range(len(batch)) if found[place] != wanted[place]), None)
        if place is not None:
            remedy = "Begin a new file: another version of Faker draws other names"
            raise InputError(message("recording", f"hold {wanted[place]}", repr(found[place]), remedy, where))
        whole = all(isinstance(row.get(key), str) for row in rows for key in ("text", "refused"))
        require(whole, "recording", "hold text and refused in each row", "<another row>", "Begin a new file", where)
        self._next += len(batch)
        return rows

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a batch; it is on the disk before this returns."""
        lines = [_line(row) for row in rows]
        with self._path.open("ab") as file:
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self._lines += lines
        self._next += len(lines)
