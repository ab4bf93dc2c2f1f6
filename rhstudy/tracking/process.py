"""Which process does a run, and whether it still lives: how runs left behind by a kill are recognised.

A pid alone is reused, and means nothing on another machine, after a reboot, or in another container. A process is
therefore named by host, by machine, boot and pid namespace (together its "space"), pid, and the time it started.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from rhstudy.tracking.recorder import Recorder, RunRecord

ENDED_BY_TAG = "rhstudy.ended_by"
LAUNCH_TAG = "rhstudy.launch"
LAUNCHER_TAG = "rhstudy.launcher"
LAUNCH_VARIABLES = ("RHSTUDY_LAUNCH", "RHSTUDY_LAUNCHER", "RHSTUDY_PARENT_RUN_ID", "RHSTUDY_RUN_NAME")
"""What a launcher (`rhstudy.containers`) tells the process it starts: the launch's name, which process the launcher
is (JSON of its `process_tags`), and which run to nest under, by which name."""


def process_tags(pid: int | None = None) -> dict[str, str]:
    """The tags that name process `pid` (default: this one) on this host."""
    number = os.getpid() if pid is None else pid
    return {
        "rhstudy.pid": str(number),
        "rhstudy.host": socket.gethostname(),
        "rhstudy.process_space": "/".join(process_space()),
        "rhstudy.process_start_time": _start_time(number),
        **_launch_tags(),
    }


def _launch_tags() -> dict[str, str]:
    """Who launched this process, when it was launched: a container's pid means nothing outside it."""
    known = {LAUNCH_TAG: os.environ.get("RHSTUDY_LAUNCH"), LAUNCHER_TAG: os.environ.get("RHSTUDY_LAUNCHER")}
    return {key: value for key, value in known.items() if value}


def launched_place() -> dict[str, str]:
    """``parent_run_id`` and ``run_name`` that a launcher chose for the stage of this process; empty without one."""
    return {
        "parent_run_id": os.environ.get("RHSTUDY_PARENT_RUN_ID", ""),
        "run_name": os.environ.get("RHSTUDY_RUN_NAME", ""),
    }


def process_space() -> tuple[str, str, str]:
    """(machine id, boot id, pid namespace); a part the system does not tell is empty."""
    return (
        _first_line(Path("/etc/machine-id")),
        _first_line(Path("/proc/sys/kernel/random/boot_id")),
        _link(Path("/proc/self/ns/pid")),
    )


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether the process named by `tags` (see `process_tags`) surely no longer lives.

    False when this host cannot know: another host, another container, or no tags at all.
    """
    space = tuple(tags.get("rhstudy.process_space", "").split("/"))
    here = process_space()
    number = tags.get("rhstudy.pid", "")
    if tags.get("rhstudy.host") != socket.gethostname() or len(space) != 3 or not number.isdigit():
        return False
    if space[0] != here[0]:
        return False
    if space[1] != here[1]:
        return True
    return space[2] == here[2] and _start_time(int(number)) != tags.get("rhstudy.process_start_time")


def is_alive(tags: Mapping[str, str]) -> bool:
    """Whether the process named by `tags` surely lives, on this host; False when this host cannot know."""
    here = process_tags(int(tags["rhstudy.pid"])) if tags.get("rhstudy.pid", "").isdigit() else {}
    named = ("rhstudy.host", "rhstudy.process_space", "rhstudy.process_start_time")
    return bool(here.get("rhstudy.process_start_time")) and all(here[name] == tags.get(name) for name in named)


def is_suspended(tags: Mapping[str, str]) -> bool:
    """Whether the process named by `tags`, alive on this host, was stopped (SIGSTOP, Ctrl-Z) and not let go on."""
    import psutil

    try:
        return psutil.Process(int(tags["rhstudy.pid"])).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def end_run_as_stale(recorder: Recorder, record: RunRecord) -> None:
    """Record that `record`'s process died without a word: KILLED, with the tag ``rhstudy.ended_by``."""
    recorder.set_tags(record.run_id, {ENDED_BY_TAG: "stale", "rhstudy.error": "the process died without a word"})
    recorder.end_run(record.run_id, "KILLED")


def end_stale_runs(recorder: Recorder) -> list[str]:
    """End every RUNNING run of this host whose process is dead as KILLED; returns their ids."""
    stale = [record for record in recorder.find_runs(status="RUNNING") if is_dead(record.tags)]
    for record in stale:
        end_run_as_stale(recorder, record)
    return [record.run_id for record in stale]


def _start_time(pid: int) -> str:
    """Clock ticks after boot at which `pid` started; empty when there is no such process (or it is a zombie)."""
    if not Path("/proc/self/stat").exists():
        return _portable_start_time(pid)
    try:
        # The command name, in parentheses, may hold spaces and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def _portable_start_time(pid: int) -> str:
    import psutil

    try:
        return repr(psutil.Process(pid).create_time())
    except psutil.Error:
        return ""


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
