from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rhstudy.containers import runtime
from rhstudy.containers.config import ContainerConfig
from rhstudy.containers.container import Ended, Output
from rhstudy.containers.runtime import HostProcess, Job
from rhstudy.errors import InputError


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_SAMPLE_S", 0.02)


def process(here: Path, *command: str, **config: int) -> HostProcess:
    job = Job(command=command, working_dir=here, uri="", environment={"GIVEN": "by the job", "BOTH": "job"})
    return HostProcess(job, ContainerConfig(environment={"BOTH": "config"}, **config), "launch-1")  # type: ignore[arg-type]


def shell(here: Path, script: str) -> Ended:
    return process(here, "sh", "-c", script).run()


def living(group: int) -> list[str]:
    """Processes of a group that do something; those that only wait to be reaped do not."""
    found = []
    for item in psutil.process_iter(["status", "cmdline"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(item.pid) == group and item.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(" ".join(item.info["cmdline"] or ()))
    return found


def is_gone(group: int) -> bool:
    limit = time.monotonic() + 60
    while living(group) and time.monotonic() < limit:
        time.sleep(0.01)
    return not living(group)


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143), ("kill -11 $$", 139)]
)
def test_the_exit_code_is_the_commands_and_128_more_than_a_signal(here: Path, script: str, code: int) -> None:
    ended = shell(here, script)
    assert (ended.exit_code, ended.stopped, ended.out_of_memory) == (code, False, False)


def test_output_is_passed_on_as_it_comes_and_its_end_remembered(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "; ".join(f"echo err {number} >&2" for number in range(50))
    ended = shell(here, f"printf 'caf\\303'; sleep 0.1; printf '\\251\\n'; {lines}; echo; echo '{{\"a\": 1}}'; echo")
    printed = capsys.readouterr()
    assert printed.out == 'café\n\n{"a": 1}\n\n'
    assert printed.err == "".join(f"err {number}\n" for number in range(50))
    assert ended.last_lines == tuple(f"err {number}" for number in range(10, 50))
    assert ended.last_stdout_line == '{"a": 1}'


def test_without_errors_the_last_lines_are_those_of_stdout(here: Path) -> None:
    assert shell(here, "echo one; echo; echo two").last_lines == ("one", "two")


def test_what_the_command_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_CALLER", "c")
    names = ("PATH", "GIVEN", "BOTH", "OF_THE_CALLER", "RHSTUDY_LAUNCH", "RHSTUDY_LAUNCHER")
    script = f"import json, os; print(json.dumps([os.getcwd(), *(os.environ[name] for name in {names})]))"
    told = json.loads(process(here, "python", "-c", script).run().last_stdout_line)
    assert told[0] == str(here)
    assert told[1].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert told[2:6] == ["by the job", "config", "c", "launch-1"]
    assert json.loads(told[6])["rhstudy.pid"] == str(os.getpid())


def test_memory_is_measured_over_the_whole_family(here: Path) -> None:
    child = f"{sys.executable} -c 'x = bytearray(80_000_000); import time; time.sleep(0.3)'"
    assert shell(here, f"{child}; true").peak_memory_bytes > 80e6


def test_a_program_that_is_not_there_is_named(here: Path) -> None:
    wanted = "command must be a program of this machine, got 'no-such-program'. Install rhstudy in this environment; No"
    with pytest.raises(InputError, match=wanted):
        process(here, "no-such-program")


def stopped(started: HostProcess, ready: Path) -> tuple[Ended, float]:
    """Stop it as soon as `ready` is there; how it ended, and how long that took."""
    found: list[Ended] = []
    follower = threading.Thread(target=lambda: found.append(started.run()))
    follower.start()
    while not ready.exists():
        time.sleep(0.01)
    began = time.monotonic()
    started.stop()
    follower.join(50)
    return found[0], time.monotonic() - began


@pytest.mark.parametrize(
    ("script", "code", "at_least_s"),
    [
        ("touch ready; sleep 60", 143, 0),
        ("trap 'exit 5' TERM; touch ready; sleep 60 & wait", 5, 0),
        ("(trap '' TERM; touch ready; sleep 60) & wait", 143, 0),
        ("trap '' TERM; touch ready; sleep 60 & sleep 60", 137, 1),
    ],
    ids=["obeys", "ends in order", "a child does not obey", "none obeys"],
)
def test_a_stopped_command_leaves_no_process(here: Path, script: str, code: int, at_least_s: float) -> None:
    started = process(here, "sh", "-c", script, stop_timeout_s=1)
    ended, took_s = stopped(started, here / "ready")
    assert (ended.exit_code, ended.stopped) == (code, True)
    assert at_least_s <= took_s < at_least_s + 40  # far from the 60 s that the command would take
    assert is_gone(started._process.pid)


def test_stopping_what_has_ended_changes_nothing(here: Path) -> None:
    started = process(here, "sh", "-c", "exit 4")
    assert started.run().exit_code == 4
    started.stop()


def test_what_a_command_left_in_the_background_ends_with_it(here: Path) -> None:
    began = time.monotonic()
    started = process(here, "sh", "-c", "sleep 60 & exit 0")
    assert started.run().exit_code == 0
    assert time.monotonic() - began < 5
    assert is_gone(started._process.pid)


def test_a_process_of_its_own_session_that_holds_the_output_is_not_waited_for(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_LAST_OUTPUT_S", 0.1)
    script = "import subprocess; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid)"
    began = time.monotonic()
    ended = process(here, "python", "-c", script).run()
    os.kill(int(ended.last_stdout_line), signal.SIGKILL)
    assert ended.exit_code == 0
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), ValueError("I/O operation on closed file")])
def test_output_that_nobody_can_take_stops_nothing(error: Exception) -> None:
    def write(text: str, is_error: bool) -> None:
        raise error

    output = Output(write)
    output(b"one\ntwo\n", False)
    assert output.last_stdout_line == "two"


def test_a_long_output_keeps_its_end() -> None:
    output = Output(lambda text, is_error: None)
    for number in range(20000):
        output(f"line {number}\n".encode(), False)
    output(b"\xff\n", False)
    assert output.last_lines[-2:] == ("line 19999", "\ufffd")
    assert len(output.last_lines) == 40
