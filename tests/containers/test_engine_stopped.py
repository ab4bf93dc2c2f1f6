"""An engine that is stopped under a study. It takes every container with it: nothing else may run beside this file."""

from __future__ import annotations

import os
import shlex
import subprocess

import docker
import pytest
from projects import Project
from small_study import LIMIT_S, at_work, finish, ours, started, top_run, wait_for


@pytest.mark.skipif("RHSTUDY_DOCKER_DOWN" not in os.environ, reason="RHSTUDY_DOCKER_DOWN and .._UP are not given")
def test_an_engine_that_is_stopped(engine: docker.DockerClient, small: Project) -> None:
    with started(small, {"patience_s": 2}) as process:
        store = small.store
        wait_for(at_work(engine, small, store), process)
        try:
            subprocess.run(shlex.split(os.environ["RHSTUDY_DOCKER_DOWN"]), check=True, capture_output=True)
            _, err = process.communicate(timeout=LIMIT_S)
        finally:
            subprocess.run(shlex.split(os.environ["RHSTUDY_DOCKER_UP"]), check=True, capture_output=True)
    assert process.returncode != 0
    assert "Start the" in err
    assert top_run(store).status in ("KILLED", "FAILED")
    assert not store.find_runs(status="RUNNING")
    finish(small)
    wait_for(lambda: not ours(engine, small))
