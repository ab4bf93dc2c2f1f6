"""`mlflow run --backend rhstudy` as a user types it, where no engine answers: refused, on the host instead, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import LIMIT_S, environment, give_store, mlflow_store

from rhstudy.tracking.recorder import RunRecord

PROJECT = """
name: small
entry_points:
  main:
    command: 'python -c "print(6 * 7)"'
  wait:
    command: 'sh -c "sleep 300 & echo $$ > group.tmp; mv group.tmp group; wait"'
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "mlproject").write_text(PROJECT, encoding="utf-8")
    give_store(tmp_path)
    return tmp_path


def start(folder: Path, config: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlflow", "run", ".", "--backend", "rhstudy", "--backend-config"]
    return subprocess.Popen(
        [*command, json.dumps(config), *arguments],
        cwd=folder,
        env=environment(folder, DOCKER_HOST=f"unix://{folder}/no.sock"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def only_run(folder: Path) -> RunRecord:
    (record,) = mlflow_store(folder).find_runs()
    return record


def test_without_engine_the_runtime_docker_is_refused(project: Path) -> None:
    process = start(project, {"runtime": "docker"})
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    said = f"Docker engine must answer, got <no answer at unix://{project}/no.sock>. Start Docker, set DOCKER_HOST, or"
    assert said in err
    assert "Traceback" not in err
    record = only_run(project)
    assert record.status == "FAILED"
    assert record.tags["rhstudy.error"].startswith(said)


def test_without_engine_the_runtime_auto_is_the_host_and_says_so(project: Path) -> None:
    process = start(project, {"runtime": "auto"}, "--run-name", "my run")
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err[-3000:]
    assert "42" in out.splitlines()
    assert "Running on the host (runtime auto)." in err
    record = only_run(project)
    assert (record.status, record.name, record.tags["rhstudy.runtime"]) == ("FINISHED", "my run", "host")
    assert record.tags["rhstudy.runtime_reason"].startswith("Docker engine must answer")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_launch_is_killed_and_leaves_no_process(project: Path, number: signal.Signals) -> None:
    process = start(project, {"runtime": "host"}, "-e", "wait")
    limit = time.monotonic() + LIMIT_S
    while not (project / "group").exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1, err[-3000:]
    assert "Traceback" not in err
    assert only_run(project).status == "KILLED"
    group = int((project / "group").read_text())
    assert not [item for item in psutil.process_iter(["status"]) if _lives_in(item, group)]


def _lives_in(item: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(item.pid) == group and item.info["status"] != psutil.STATUS_ZOMBIE
    except ProcessLookupError:
        return False
