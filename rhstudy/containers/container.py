"""One container, run to its true end: output streamed, memory watched, stopped on request, always removed."""

from __future__ import annotations

import codecs
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import docker
from docker.errors import APIError, DockerException, NotFound
from docker.types import DeviceRequest, LogConfig

from rhstudy.containers.config import ContainerConfig
from rhstudy.containers.engine import LOST, explained, wait_until_answering
from rhstudy.containers.image import Image, wanted_gpus
from rhstudy.containers.mounts import View
from rhstudy.tracking.process import LAUNCH_TAG

_OUTPUT_TAIL = 40
_RETRY_S = 1.0
_MAX_KEPT_CHARS = 65536
_log = logging.getLogger(__name__)

Write = Callable[[str, bool], None]
"""Gets each piece of output, and whether it is stderr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a container, or a process on the host, ended.

    Attributes:
        exit_code: of its main process; None when contact with the engine was lost.
        out_of_memory: whether the kernel killed it for exceeding its memory limit.
        stopped: whether it was asked to stop.
        peak_memory_bytes: largest memory in use at any sample (one a second), page cache excluded; 0 when unknown.
        last_lines: the end of its output.
        last_stdout_line: the last line of stdout: a command's facts as JSON.
    """

    exit_code: int | None
    out_of_memory: bool = False
    stopped: bool = False
    peak_memory_bytes: int = 0
    last_lines: tuple[str, ...] = ()
    last_stdout_line: str = ""


def write_through(text: str, is_error: bool) -> None:
    """Pass output on as it comes."""
    stream = sys.stderr if is_error else sys.stdout
    stream.write(text)
    stream.flush()


class Output:
    """Passes output on and remembers its end."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._decoders = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in range(2)]
        self._texts = ["", ""]

    def __call__(self, data: bytes, is_error: bool) -> None:
        """Take a piece of output, which may end inside a character."""
        text = self._decoders[is_error].decode(data)
        # Whoever read it may be gone (`| head`), which is no reason to lose the run.
        with contextlib.suppress(OSError, ValueError):
            self._write(text, is_error)
        self._texts[is_error] = (self._texts[is_error] + text)[-_MAX_KEPT_CHARS:]

    def set_stdout(self, data: bytes) -> None:
        """Take the end of stdout as it is kept elsewhere, in place of what came by."""
        self._texts[False] = data.decode("utf-8", errors="replace")

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines of stderr; of stdout when stderr is empty (a terminal has only that)."""
        lines = (self._texts[True] or self._texts[False]).splitlines()
        return tuple(line for line in lines if line.strip())[-_OUTPUT_TAIL:]

    @property
    def last_stdout_line(self) -> str:
        """The last line of stdout."""
        return next((line for line in reversed(self._texts[False].splitlines()) if line.strip()), "")


class Container:
    """A container of the engine that runs one command."""

    def __init__(
        self,
        client: docker.DockerClient,
        image: Image,
        command: Sequence[str],
        view: View,
        config: ContainerConfig,
        *,
        launch: str,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Create it; it does not run yet.

        Args:
            client: of the engine.
            image: what it is made from.
            command: program and arguments, without a shell.
            view: what it sees of this machine.
            config: GPUs, network, limits.
            launch: names this launch; also its host name, so that runs made inside say which container they were in.
            labels: further labels.

        Raises:
            EngineError: the engine refuses, for instance GPUs without the NVIDIA toolkit.
        """
        self.launch = launch
        self._client, self._config = client, config
        self._stop_asked = threading.Event()
        self._peak = 0
        self._tty = sys.stderr.isatty() and sys.stdout.isatty()
        with explained("creating the container"):
            self._container = client.containers.create(
                image.image_id,
                list(command),
                name=f"rhstudy-{launch}",
                hostname=f"rhstudy-{launch}",
                labels={LAUNCH_TAG: launch, **(labels or {})},
                environment=dict(view.environment),
                mounts=list(view.mounts),
                working_dir=view.working_dir,
                user=view.user,
                group_add=list(view.groups),
                network_mode=None if config.network == "auto" else config.network,
                device_requests=_gpu_requests(config),
                mem_limit=config.memory or None,
                shm_size=config.shm_size or None,
                tty=self._tty,
                # The engine's default may be one that cannot be read back.
                log_config=LogConfig(type=LogConfig.types.JSON),
            )

    @property
    def container_id(self) -> str:
        """The engine's id."""
        return str(self._container.id)

    def run(self, write: Write = write_through) -> Ended:
        """Start it, pass its output on until it ends, and remove it.

        Raises:
            EngineError: the engine refused to start it. Contact lost later is an `Ended` without exit code.
            KeyboardInterrupt: the caller was interrupted; the container was asked to end and given its time.
        """
        output = Output(write)
        try:
            with explained("starting the container"):
                self._container.start()
            watcher = threading.Thread(target=self._watch_memory, daemon=True)
            watcher.start()
            exit_code, out_of_memory = self._follow(output)
        except KeyboardInterrupt:
            self.stop()
            raise
        finally:
            self._remove()
        return Ended(
            exit_code=exit_code,
            out_of_memory=out_of_memory,
            stopped=self._stop_asked.is_set(),
            peak_memory_bytes=self._peak,
            last_lines=output.last_lines,
            last_stdout_line=output.last_stdout_line,
        )

    def stop(self) -> None:
        """Ask it to end (SIGTERM), and kill it when it takes longer than `stop_timeout_s`."""
        self._stop_asked.set()
        # It may have ended by itself, or the engine may be gone: `run` finds out.
        with contextlib.suppress(DockerException, *LOST):
            self._container.stop(timeout=self._config.stop_timeout_s)

    def _follow(self, output: Output) -> tuple[int | None, bool]:
        """Pass output on until the end, across an engine that goes away and comes back; exit code, out of memory."""
        heard, was_away, away_since = time.time(), False, 0.0
        while True:
            try:
                for out, err in self._chunks(heard if was_away else 0.0):
                    heard, away_since = time.time(), 0.0
                    for data, is_error in ((out, False), (err, True)):
                        if data:
                            output(data, is_error)
                self._container.wait(timeout=self._config.stop_timeout_s + 60)
                self._container.reload()
                state = self._container.attrs["State"]
                if was_away:
                    # The two streams came as one: a command's facts are the end of stdout.
                    output.set_stdout(self._container.logs(stdout=True, stderr=False, tail=_OUTPUT_TAIL))
                return int(state["ExitCode"]), bool(state["OOMKilled"])
            except NotFound:
                return None, False  # somebody removed it
            except (APIError, *LOST):
                was_away, away_since = True, away_since or time.monotonic()
                patience_s = self._config.patience_s
                _log.warning("the Docker engine stopped answering; waiting up to %d s", patience_s)
                back = wait_until_answering(self._client, patience_s)
                # An engine that answers and yet refuses is given no more time than one that is away.
                if not back or time.monotonic() - away_since > 2 * patience_s + _RETRY_S:
                    return None, False
                time.sleep(_RETRY_S)

    def _chunks(self, since: float) -> Iterator[tuple[bytes | None, bytes | None]]:
        """(stdout, stderr) as they come: from the beginning, or what came after `since` with both as stderr."""
        if since or self._tty:
            options: dict[str, Any] = {"since": since} if since else {}
            for chunk in self._container.logs(stream=True, follow=True, **options):
                yield (None, chunk) if since else (chunk, None)
            return
        yield from self._client.api.attach(
            self._container.id, stdout=True, stderr=True, stream=True, logs=True, demux=True
        )

    def _watch_memory(self) -> None:
        with contextlib.suppress(DockerException, *LOST, ValueError, KeyError):
            for sample in self._container.stats(stream=True, decode=True):
                memory = sample.get("memory_stats") or {}
                details = memory.get("stats") or {}
                cache = details.get("total_inactive_file", details.get("inactive_file", 0))
                self._peak = max(self._peak, int(memory.get("usage", 0)) - int(cache))

    def _remove(self) -> None:
        with contextlib.suppress(DockerException, *LOST):
            self._container.remove(force=True)


def _gpu_requests(config: ContainerConfig) -> list[DeviceRequest]:
    wanted = wanted_gpus(config)
    if wanted == "none":
        return []
    if wanted == "all":
        return [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return [DeviceRequest(device_ids=wanted.split(","), capabilities=[["gpu"]])]
