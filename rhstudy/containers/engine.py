"""The Docker engine: is there one, what can it do, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import docker
import requests
from docker.context import ContextAPI
from docker.errors import APIError, BuildError, DockerException, ImageNotFound, NotFound

from rhstudy.errors import StudyError, masked, message

_PROBE_S = 5
CALL_TIMEOUT_S = 600
"""For slow calls, such as sending a build context of gigabytes."""

LOST = (requests.exceptions.RequestException, ConnectionError, TimeoutError)
"""What a call raises when the engine stopped answering."""


class EngineError(StudyError):
    """The engine does not answer or refused something. Exit code 1."""


def address() -> str:
    """Where the engine is looked for: ``$DOCKER_HOST``, else the current `docker context`, else the default socket."""
    given = os.environ.get("DOCKER_HOST")
    if given:
        return given
    try:
        found = ContextAPI.kwargs_from_context().get("base_url")
    except Exception:  # also bare ones, for a file that is no context
        return "an unreadable docker context"
    return str(found or "unix:///var/run/docker.sock")


def connect() -> docker.DockerClient:
    """A client of the engine, which answered.

    Raises:
        EngineError: none answers.
    """
    try:
        probe = docker.from_env(timeout=_PROBE_S)
        probe.ping()
        probe.close()
        return docker.from_env(timeout=CALL_TIMEOUT_S)
    except Exception as error:  # also bare ones, for a file that is no context
        remedy = (
            "Start Docker, set DOCKER_HOST, or run on the host with the runtime host; "
            f"the engine's client says: {masked(str(error))[:200]}"
        )
        raise EngineError(message("Docker engine", "answer", f"<no answer at {address()}>", remedy)) from error


def is_answering(client: docker.DockerClient) -> bool:
    """Whether the engine answers within 5 s."""
    try:
        # `client.ping` has the patience of slow calls: one on an engine that hangs would outlast any promised wait.
        return bool(client.api.get(f"{client.api.base_url}/_ping", timeout=_PROBE_S).ok)
    except (DockerException, *LOST):
        return False


def wait_until_answering(client: docker.DockerClient, patience_s: float) -> bool:
    """Wait up to `patience_s` seconds for the engine; whether it answers."""
    limit = time.monotonic() + patience_s
    while not is_answering(client):
        if time.monotonic() > limit:
            return False
        time.sleep(1)
    return True


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the engine's refusals inside the block into an `EngineError` that says what was refused.

    Raises:
        EngineError: the engine refused, or no longer answers.
    """
    try:
        yield
    except (ImageNotFound, NotFound, BuildError, APIError) as error:
        said = str(getattr(error, "explanation", "") or error)
        raise EngineError(message(what, "be possible on this engine", "<refused>", _remedy(said))) from error
    except LOST as error:
        remedy = "Start the engine and then the same command again: finished stages are reused"
        raise EngineError(message(what, "be answered by the engine", f"<{type(error).__name__}>", remedy)) from error


def _remedy(said: str) -> str:
    if "capabilities: [[gpu]]" in said or "nvidia" in said.lower():
        return f"Install the NVIDIA container toolkit or set gpus to none; the engine says: {masked(said)[:300]}"
    return f"The engine says: {masked(said)[:400]}"


def num_host_gpus() -> int:
    """NVIDIA GPUs of this machine, as its driver lists them; 0 without driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else 0


def is_rootless(client: docker.DockerClient) -> bool:
    """Whether root inside a container is the calling user outside (rootless Docker)."""
    return any("rootless" in option for option in client.info().get("SecurityOptions") or ())


def is_desktop(client: docker.DockerClient) -> bool:
    """Whether containers live in a virtual machine of Docker Desktop, where the host's network is not theirs."""
    return "Docker Desktop" in str(client.info().get("OperatingSystem", ""))


def facts() -> dict[str, Any]:
    """What a bug report needs to know of the engine; ``{"docker_engine": "none: ..."}`` without one."""
    try:
        client = connect()
    except EngineError as error:
        return {"docker_engine": f"none: {error}"}
    info = client.info()
    return {
        "docker_engine": info.get("ServerVersion"),
        "docker_os": info.get("OperatingSystem"),
        "docker_storage": info.get("Driver"),
        "docker_runtimes": sorted(info.get("Runtimes") or ()),
        "docker_cgroup": info.get("CgroupVersion"),
        "docker_rootless": is_rootless(client),
    }
