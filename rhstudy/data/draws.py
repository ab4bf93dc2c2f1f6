"""Facts drawn before it is known what became of the earlier ones, exactly as if it had been."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from rhstudy.data.facts import Fact

OpenStreams = Callable[[Collection[str]], Mapping[bool, Iterator[Fact]]]
"""From a live view of the ids of dropped facts to streams of facts; the same view gives the same streams."""


class Draws:
    """Facts of several streams, in the order in which examples take them.

    Streams look at which facts were dropped: rows come round again without them. While some are being made it is taken
    that none will be dropped; when one is, what was drawn after it is drawn again by new streams.

    Args:
        open_streams: see `OpenStreams`.
    """

    def __init__(self, open_streams: OpenStreams) -> None:
        self._open = open_streams
        self._settled: list[tuple[bool, str]] = []
        self._ahead: list[bool] = []
        self._dropped: set[str] = set()
        self._streams = open_streams(self._dropped)

    def draw(self, stream: bool) -> Fact | None:
        """The next fact of a stream; None where it has come to an end."""
        fact = next(self._streams[stream], None)
        if fact is not None:
            self._ahead.append(stream)
        return fact

    def settle(self, dropped: str = "") -> None:
        """The oldest fact that was drawn and not settled became an example, or was `dropped` (its id); in that case
        those drawn after it are taken back."""
        self._settled.append((self._ahead.pop(0), dropped))
        if not dropped:
            return
        self._dropped.add(dropped)
        if self._ahead:
            self._again()

    def _again(self) -> None:
        self._ahead, self._dropped = [], set()
        self._streams = self._open(self._dropped)
        for stream, dropped in self._settled:
            next(self._streams[stream])
            if dropped:
                self._dropped.add(dropped)
