"""What a launch leaves behind: tags on its runs, and the true status of every run whose process is gone.

A launch is one start of a container or host process by this machine. Runs made in it carry its name
(``rhstudy.launch``) and which process started it (``rhstudy.launcher``), so that whoever looks later, the launcher or
the next one, can tell a run that is being worked on from one that was left behind.
"""

from __future__ import annotations

import json
import logging
import shlex
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import docker
from docker.errors import DockerException
from mlflow.exceptions import MlflowException

from rhstudy.containers.container import Container, Ended
from rhstudy.containers.engine import LOST
from rhstudy.containers.image import Image
from rhstudy.errors import StudyError, UnreachableStoreError, masked, message
from rhstudy.tracking.endings import ENDED_AS_TAG, ERROR_TAG, EXIT_TAG
from rhstudy.tracking.process import ENDED_BY_TAG, LAUNCH_TAG, LAUNCHER_TAG, is_alive, is_dead, process_tags
from rhstudy.tracking.recorder import Recorder, Status

SIGNAL_CODES = (130, 137, 143)
"""Exit codes of a process ended by SIGINT, SIGKILL or SIGTERM."""
_log = logging.getLogger(__name__)


def new_launch() -> str:
    """A name for a launch."""
    return uuid.uuid4().hex[:12]


def launch_environment(launch: str) -> dict[str, str]:
    """The variables by which the launched process knows its launch."""
    return {"RHSTUDY_LAUNCH": launch, "RHSTUDY_LAUNCHER": json.dumps(process_tags())}


def launch_tags(launch: str) -> dict[str, str]:
    """The tags of a run that a launch is for, from before the launched process tells its own."""
    return {LAUNCH_TAG: launch, LAUNCHER_TAG: json.dumps(process_tags())}


def image_tags(image: Image, container: Container, command: Sequence[str]) -> dict[str, str]:
    """Which image and container a run was done in."""
    return {
        "mlflow.docker.image.uri": image.name,
        "mlflow.docker.image.id": image.image_id,
        "rhstudy.container.image": image.name,
        "rhstudy.container.image_id": image.image_id,
        "rhstudy.container.image_digest": image.repo_digest or "none: the image was not pushed to a registry",
        "rhstudy.container.id": container.container_id,
        "rhstudy.container.command": masked(shlex.join(command)),
    }


def ended_tags(ended: Ended) -> dict[str, str]:
    """How a run's container or process ended."""
    tags = {"rhstudy.container.exit_code": "unknown" if ended.exit_code is None else str(ended.exit_code)}
    if ended.peak_memory_bytes:
        tags["rhstudy.container.peak_memory_bytes"] = str(ended.peak_memory_bytes)
    return tags


def status_of(ended: Ended) -> Status:
    """FINISHED for exit code 0; KILLED when it was stopped or killed by a signal; else FAILED."""
    if ended.exit_code == 0:
        return "FINISHED"
    killed = ended.stopped or ended.exit_code in SIGNAL_CODES
    return "KILLED" if killed and not ended.out_of_memory else "FAILED"


def reason_of(ended: Ended) -> str:
    """Why a launch did not succeed, in a sentence: the command's own last word where it has one."""
    said = next((line for line in reversed(ended.last_lines) if line.startswith("rhstudy: ")), "")
    again = "Start the same command again: finished stages are reused and unfinished ones resumed"
    if ended.exit_code == 0:
        return message("command", "end its run", "<exit code 0, the run still RUNNING>", "Look at its output")
    if ended.exit_code is None and ended.stopped:
        return message("command", "end by itself", "<stopped>", again)
    if ended.exit_code is None:
        return message("Docker engine", "answer until the container ends", "<contact lost>", again)
    if ended.out_of_memory:
        return message("container memory", "hold the command", "<killed: out of memory>", f"Raise memory. {again}")
    if said:
        return said.removeprefix("rhstudy: ")
    if ended.exit_code in SIGNAL_CODES:
        return message("command", "end by itself", f"<exit code {ended.exit_code}: killed by a signal>", again)
    shown = " | ".join(ended.last_lines[-3:]) or "nothing"
    return message(
        "command", "end with exit code 0", f"<exit code {ended.exit_code}>", f"Its last words: {shown[-600:]}"
    )


def close_launch(recorder: Recorder, launch: str, ended: Ended) -> None:
    """End every run of `launch` that is still RUNNING: its process is gone and cannot do so any more."""
    status: Status = "KILLED" if status_of(ended) == "FINISHED" else status_of(ended)
    for record in recorder.find_runs({LAUNCH_TAG: launch}, "RUNNING"):
        tags = {EXIT_TAG: str(ended.exit_code), ENDED_AS_TAG: status, ERROR_TAG: reason_of(ended)}
        recorder.set_tags(record.run_id, {**tags, ENDED_BY_TAG: "launcher"})
        recorder.end_run(record.run_id, status)


def close_run(recorder: Recorder, run_id: str, ended: Ended) -> Status:
    """Give the run a launch was for its true end, where its process did not; returns the status it has then.

    A run that its own process ended keeps what it said, unless it said FINISHED and the process then failed.
    """
    recorder.set_tags(run_id, ended_tags(ended))
    said, true = recorder.get_run(run_id).status, status_of(ended)
    if said == "RUNNING" or (said == "FINISHED" and true != "FINISHED"):
        recorder.end_run(run_id, true)
        if true != "FINISHED":
            tags = {EXIT_TAG: str(ended.exit_code), ENDED_AS_TAG: true, ERROR_TAG: reason_of(ended)}
            recorder.set_tags(run_id, tags)
        return true
    return said


def end_abandoned(recorder: Recorder, client: docker.DockerClient | None) -> list[str]:
    """End RUNNING runs of earlier launches whose launcher and container are both gone, as KILLED; returns their ids.

    A container or process whose launcher was killed goes on and ends its runs itself; it is left alone, and a container
    removed once it has exited. Without an engine nobody can tell, and nothing is done.
    """
    if client is None:
        return []
    try:
        living = _living_launches(client)
    except (DockerException, *LOST):
        return []
    left = []
    for record in recorder.find_runs(status="RUNNING"):
        launch = record.tags.get(LAUNCH_TAG)
        if launch and launch not in living and is_dead(_launcher(record.tags)) and not is_alive(record.tags):
            recorder.set_tags(record.run_id, {ENDED_BY_TAG: "stale", ERROR_TAG: "its container ended without a word"})
            recorder.end_run(record.run_id, "KILLED")
            _log.warning("run %s was left by a container that is gone; it is KILLED now", record.run_id)
            left.append(record.run_id)
    return left


def _launcher(tags: Mapping[str, str]) -> Mapping[str, str]:
    try:
        found = json.loads(tags.get(LAUNCHER_TAG, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _living_launches(client: docker.DockerClient) -> set[str]:
    living = set()
    for container in client.containers.list(all=True, filters={"label": LAUNCH_TAG}, ignore_removed=True):
        if container.status in ("created", "exited", "dead") and is_dead(_launcher(container.labels)):
            # Its launcher was killed before it could start it, or clean up.
            container.remove(force=True)
        else:
            living.add(container.labels[LAUNCH_TAG])
    return living


def patiently(what: str, patience_s: float, work: Callable[[], None]) -> None:
    """Do `work`, which writes to the tracking store, waiting up to `patience_s` seconds for a store that is away.

    Raises:
        StudyError: the store did not come back.
    """
    limit = time.monotonic() + patience_s
    while True:
        try:
            return work()
        except (MlflowException, UnreachableStoreError, OSError) as error:
            if time.monotonic() > limit:
                remedy = "Start the same command again when it answers: runs left RUNNING are closed then"
                text = message("tracking store", f"answer to record {what}", f"<{type(error).__name__}>", remedy)
                raise StudyError(text) from error
            _log.warning("the tracking store does not answer; waiting up to %d s to record %s", patience_s, what)
            time.sleep(2)
