"""Examples made by several processes of this host; in any number of them the same ones, in the same order.

    this process (draws facts, writes rows)  --Wanted-->  python -m rhstudy.data.workers  --Made-->  this process

Each process reads the sources itself, gets every n-th example, and answers in its order, so few examples are on their
way at a time and none is waited for out of turn.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

from rhstudy.children import num_usable_cores, private_output, requests, start_module, stop
from rhstudy.data.config import DataConfig
from rhstudy.data.corpus import load_corpus
from rhstudy.data.encode import Encoder
from rhstudy.data.prompts import Made, PromptMaker, Wanted
from rhstudy.errors import StudyError, message
from rhstudy.types import Tokenizer

MANY_TOKENS = 8_000_000
"""From so many tokens of a part on, several processes save more than their start costs: each takes 3 to 7 s of its core
to read libraries and sources and to index passages, in which one process builds some 4 million tokens."""
DEFAULT_WORKERS = 2
"""Processes at most where no number is given: together with this one they stay below 2 GB for 32k tokens."""
_BEGUN_EACH = 3


def num_workers_for(config: DataConfig, num_examples: int) -> int:
    """Processes that build a part of so many examples: as many as are asked for, or what pays."""
    if config.num_workers:
        return min(config.num_workers, max(num_examples, 1))
    large = num_examples * config.num_tokens >= MANY_TOKENS
    return min(DEFAULT_WORKERS, num_usable_cores()) if large else 1


class Workers:
    """Processes that make examples; see `rhstudy.data.prompts.Makers`.

    Args:
        config: of the data set.
        tokenizer: the model's fast tokenizer.
        count: of processes.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, count: int) -> None:
        self.room = count * _BEGUN_EACH
        self._begun: deque[int] = deque()
        self._num_begun = 0
        self._unwanted = [0] * count
        start = pickle.dumps((config, tokenizer))
        self._processes: list[subprocess.Popen[bytes]] = []
        for _ in range(count):
            self._processes.append(start_module(__name__, text=False))
        for number in range(count):
            self._send(number, start)

    def begin(self, wanted: Wanted) -> None:
        """See `Makers`."""
        number = self._num_begun % len(self._processes)
        self._send(number, pickle.dumps(wanted))
        self._begun.append(number)
        self._num_begun += 1

    def take(self) -> Made:
        """See `Makers`.

        Raises:
            StudyError: a process ended, for instance because memory ran out.
        """
        number = self._begun.popleft()
        for _ in range(self._unwanted[number]):
            self._receive(number)
        self._unwanted[number] = 0
        reply = self._receive(number)
        if isinstance(reply, BaseException):
            raise reply
        made: Made = reply
        return made

    def forget(self) -> None:
        """See `Makers`."""
        for number in self._begun:
            self._unwanted[number] += 1
        self._begun.clear()

    def close(self) -> None:
        """Stop the processes, at once."""
        stop(*self._processes)

    def _send(self, number: int, content: bytes) -> None:
        pipe = self._processes[number].stdin
        try:
            if pipe is not None:
                pipe.write(content)
                pipe.flush()
        except OSError as error:
            raise self._ended(number) from error

    def _receive(self, number: int) -> Any:
        try:
            return pickle.load(self._processes[number].stdout)  # type: ignore[arg-type]
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise self._ended(number) from error

    def _ended(self, number: int) -> StudyError:
        process = self._processes[number]
        process.kill()
        got = f"<status {process.wait()}>"
        remedy = "Where memory ran out lower data.num_workers, or set it to 1 to see the error itself"
        return StudyError(message("a process that builds prompts", "live until the last one is built", got, remedy))


def work() -> None:
    """What the other processes do: standard input says of which data set first, and then which examples."""
    replies = os.fdopen(private_output(), "wb")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each has its core
    gc.disable()  # what sources and indices are made of stays to the end
    asked = requests(_loaded(sys.stdin.buffer))
    config, tokenizer = asked.get()
    maker: PromptMaker | None = None
    while True:
        wanted = asked.get()
        try:
            maker = maker or PromptMaker(config, load_corpus(config), Encoder(tokenizer))
            reply: Any = maker.made(wanted)
        except Exception as error:  # the parent raises it
            reply = _sendable(error)
        pickle.dump(reply, replies)
        replies.flush()
        if not gc.isenabled():
            gc.freeze()
            gc.enable()


def _loaded(stream: BinaryIO) -> Iterator[Any]:
    with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            yield pickle.load(stream)


def _sendable(error: Exception) -> Exception:
    """`error` as the parent gets it: house errors as they are, others with where they were raised."""
    if isinstance(error, StudyError):
        return error
    return RuntimeError("".join(traceback.format_exception(error)))


if __name__ == "__main__":
    work()
