"""Where a command runs: in a container, or on the host when it is asked for or no engine answers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

import docker
import psutil

from rhstudy.containers.config import ContainerConfig, config_values
from rhstudy.containers.container import Container, Ended, Output, write_through
from rhstudy.containers.engine import EngineError, connect, explained, is_desktop, is_rootless
from rhstudy.containers.image import Image, ensure_image
from rhstudy.containers.launch import end_abandoned, image_tags, launch_environment, launch_tags, new_launch
from rhstudy.containers.mounts import is_on_this_machine, view_of
from rhstudy.errors import InputError, message
from rhstudy.tracking.process import LAUNCHER_TAG
from rhstudy.tracking.recorder import Recorder

_SAMPLE_S = 1.0
_LAST_OUTPUT_S = 5.0
_log = logging.getLogger(__name__)

SetTags = Callable[[Mapping[str, str]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A command to run.

    Attributes:
        command: program and arguments, without a shell.
        working_dir: current folder, an absolute path here and in the container.
        environment: further variables.
        uri: MLflow tracking URI.
        written: folders it writes to besides the working folder, cache and store.
    """

    command: Sequence[str]
    working_dir: Path
    uri: str
    environment: Mapping[str, str] = field(default_factory=dict)
    written: tuple[Path, ...] = ()


@runtime_checkable
class Started(Protocol):
    """A container, or a process on the host."""

    launch: str

    def run(self) -> Ended:
        """Follow it to its end."""
        ...

    def stop(self) -> None:
        """Ask it to end."""
        ...


def engine_for(config: ContainerConfig) -> tuple[docker.DockerClient | None, str]:
    """The engine that the wanted runtime needs, or None with the reason why the host is used.

    Raises:
        EngineError: the runtime is ``docker`` and no engine answers.
    """
    if config.runtime == "host":
        return None, "asked for"
    try:
        return connect(), ""
    except EngineError as error:
        if config.runtime == "docker":
            raise
        _log.warning("%s Running on the host (runtime auto).", error)
        return None, str(error)


def start(recorder: Recorder, job: Job, config: ContainerConfig, set_tags: SetTags) -> Started:
    """Start `job` where `config` wants it.

    Args:
        recorder: where abandoned runs of earlier launches are looked for.
        job: the command.
        config: runtime, image, limits.
        set_tags: gets tags of the run the job is for: launch, runtime, image.

    Raises:
        EngineError: no engine, no image, or the engine refuses.
        InputError: a folder cannot be mounted; the project has no Dockerfile.
    """
    client, reason = engine_for(config)
    end_abandoned(recorder, client)
    launch = new_launch()
    settings = json.dumps(config_values(config), sort_keys=True, default=dict)
    set_tags(launch_tags(launch) | {"rhstudy.backend_config": settings})
    if client is None:
        set_tags({"rhstudy.runtime": "host", "rhstudy.runtime_reason": reason})
        return HostProcess(job, config, launch)
    set_tags({"rhstudy.runtime": "docker", "mlflow.project.env": "docker"})
    image = ensure_image(client, job.working_dir, config)
    container = make_container(client, image, job, config, launch)
    set_tags(image_tags(image, container, job.command))
    _log.info("container %s of image %s: %s", container.container_id[:12], image.name, shlex.join(job.command))
    return container


def make_container(
    client: docker.DockerClient, image: Image, job: Job, config: ContainerConfig, launch: str
) -> Container:
    """The container of a job, not started yet; errors as `start`."""
    uri = job.uri
    with explained("asking the engine"):
        rootless, desktop = is_rootless(client), is_desktop(client)
    if config.network == "auto" and is_on_this_machine(uri):
        if desktop:
            uri = _from_inside_desktop(uri)
        else:
            config = dataclasses.replace(config, network="host")
    view = view_of(
        config,
        uri=uri,
        working_dir=job.working_dir,
        written=job.written,
        command=job.command,
        rootless=rootless,
    )
    named = launch_environment(launch)
    environment = {
        **view.environment,
        **image.git,
        **job.environment,
        **named,
        "MLFLOW_TRACKING_URI": view.environment["MLFLOW_TRACKING_URI"],
    }
    view = dataclasses.replace(view, environment={**environment, **config.environment})
    labels = {LAUNCHER_TAG: named["RHSTUDY_LAUNCHER"]}
    return Container(client, image, job.command, view, config, launch=launch, labels=labels)


def _from_inside_desktop(uri: str) -> str:
    """The tracking URI as containers of Docker Desktop reach it; the server must allow that host name."""
    parsed = urllib.parse.urlparse(uri)
    user, at, _ = parsed.netloc.rpartition("@")
    port = f":{parsed.port}" if parsed.port else ""
    return parsed._replace(netloc=f"{user}{at}host.docker.internal{port}").geturl()


class HostProcess:
    """A job as a process of this machine, with this Python environment first on the path."""

    def __init__(self, job: Job, config: ContainerConfig, launch: str) -> None:
        """Start it.

        Raises:
            InputError: there is no such program.
        """
        self.launch, self._timeout_s = launch, config.stop_timeout_s
        self._stopped = threading.Event()
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        environment = {**os.environ, **job.environment, **launch_environment(launch), **config.environment}
        try:
            # A session of its own: Ctrl-C reaches it once, through `stop`, and not a second time from the terminal.
            self._process = subprocess.Popen(
                list(job.command),
                cwd=job.working_dir,
                env={**environment, "PATH": programs},
                stdout=subprocess.PIPE,
                # Progress bars are drawn in a terminal only.
                stderr=None if sys.stderr.isatty() else subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            remedy = f"Install rhstudy in this environment; {error.strerror}"
            raise InputError(message("command", "be a program of this machine", job.command[0], remedy)) from error

    def run(self) -> Ended:
        """Pass its output on until it ends; what it started in the background ends with it, as in a container."""
        output, peak = Output(write_through), [0]
        pipes = ((self._process.stdout, False), (self._process.stderr, True))
        work = [threading.Thread(target=_pump, args=(*pipe, output), daemon=True) for pipe in pipes if pipe[0]]
        work.append(threading.Thread(target=_watch_memory, args=(self._process, peak), daemon=True))
        for thread in work:
            thread.start()
        code = self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for thread in work:
            # A child in a session of its own may live on and hold the pipes.
            thread.join(_LAST_OUTPUT_S)
        return Ended(
            exit_code=code if code >= 0 else 128 - code,
            stopped=self._stopped.is_set(),
            peak_memory_bytes=peak[0],
            last_lines=output.last_lines,
            last_stdout_line=output.last_stdout_line,
        )

    def stop(self) -> None:
        """SIGTERM to it and its children, SIGKILL when it takes longer than `stop_timeout_s`."""
        self._stopped.set()
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(self._timeout_s)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue
            return


def _pump(pipe: IO[bytes], is_error: bool, output: Output) -> None:
    while chunk := os.read(pipe.fileno(), 65536):
        output(chunk, is_error)
    pipe.close()


def _watch_memory(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    """Keep the largest sum of resident memory of the process and its descendants in `peak`."""
    while process.poll() is None:
        try:
            root = psutil.Process(process.pid)
            sizes = [item.memory_info().rss for item in (root, *root.children(recursive=True))]
        except psutil.Error:
            sizes = [0]
        peak[0] = max(peak[0], sum(sizes))
        threading.Event().wait(_SAMPLE_S)
