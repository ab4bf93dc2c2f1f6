"""A study whose stages each run in a container of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import docker
import pytest
from commands import Outcome, content_digests, give_store, study_values, write_config
from projects import SETTINGS, Project

from rhstudy.containers.image import Image
from rhstudy.tracking.process import LAUNCH_TAG

STAGES = Counter({"make-data": 3, "finetune": 1, "detect": 2, "evaluate": 2, "analyze": 1, "report": 1})


def run_study(project: Project, *arguments: str) -> Outcome:
    command = [sys.executable, "-m", "rhstudy.cli", "study", "study.toml", *arguments]
    done = subprocess.run(
        command, cwd=project.folder, env=project.environment(), capture_output=True, text=True, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def in_containers(**settings: object) -> list[str]:
    return ["--runtime", "docker", "--backend-config", json.dumps({**SETTINGS, **settings})]


def prepared(project: Project, world: Path) -> Project:
    """One arm and a baseline on data of the project's own."""
    shutil.copytree(world, project.folder / "world")
    values = study_values(project.folder / "world", recipes=["real"], ceiling_seeds=[], baselines=["untuned"])
    write_config(project.folder / "study.toml", values)
    give_store(project.folder)
    return project


@pytest.fixture(scope="module")
def done(project: Project, world: Path) -> tuple[Project, Outcome]:
    """The study, once, in containers."""
    return prepared(project, world), run_study(project, *in_containers())


def test_each_stage_is_a_run_in_a_container_of_its_own(
    done: tuple[Project, Outcome], image: Image, engine: docker.DockerClient
) -> None:
    project, outcome = done
    assert outcome.code == 0, outcome.err[-3000:]
    runs = {run.run_id: run for run in project.store.find_runs()}
    assert {run.status for run in runs.values()} == {"FINISHED"}
    stages = [run for run in runs.values() if "rhstudy.stage_digest" in run.tags]
    assert Counter(run.tags["rhstudy.stage"] for run in stages) == STAGES
    assert len({run.tags["rhstudy.container.id"] for run in stages}) == len(stages)
    assert {run.tags["rhstudy.container.image_id"] for run in stages} == {image.image_id}
    assert {run.tags["rhstudy.container.exit_code"] for run in stages} == {"0"}
    assert all(run.tags["rhstudy.host"].startswith("rhstudy-") for run in stages)
    assert not engine.containers.list(all=True, filters={"label": LAUNCH_TAG, "status": "exited"})


def test_runs_are_nested_as_on_the_host(done: tuple[Project, Outcome]) -> None:
    project, outcome = done
    runs = {run.run_id: run for run in project.store.find_runs()}
    study = runs[outcome.facts["run_id"]]
    assert (study.tags["rhstudy.stage"], study.parent_run_id) == ("study", "")
    for run in runs.values():
        if run.tags["rhstudy.stage"] in ("finetune", "detect", "evaluate"):
            arm = runs[run.parent_run_id]
            assert (arm.tags["rhstudy.stage"], arm.parent_run_id) == ("arm", study.run_id)
            assert run.name.endswith(arm.name)


def test_host_and_container_reuse_each_other(done: tuple[Project, Outcome]) -> None:
    project, _ = done
    before = content_digests(project.store)
    on_host = run_study(project)
    assert on_host.code == 0, on_host.err[-3000:]
    assert on_host.facts["reused"]
    assert content_digests(project.store) == before
    again = run_study(project, *in_containers())
    assert again.code == 0, again.err[-3000:]
    assert again.facts["reused"]
    assert content_digests(project.store) == before


def test_the_host_alone_finds_the_same(
    done: tuple[Project, Outcome], make_project: Callable[[Path], Project], world: Path, tmp_path: Path
) -> None:
    twin = prepared(make_project(tmp_path), world)
    outcome = run_study(twin)
    assert outcome.code == 0, outcome.err[-3000:]
    assert content_digests(twin.store) == content_digests(done[0].store)


def test_a_stage_that_refuses_its_input_tells_the_study_why(done: tuple[Project, Outcome]) -> None:
    project, _ = done
    outcome = run_study(project, *in_containers(), "--data.num-tokens", "80")
    assert outcome.code == 2
    assert "data.num_tokens must be longer than the needle" in outcome.err.splitlines()[-1], outcome.err[-3000:]
    assert not project.store.find_runs(status="RUNNING")
    failed = [run for run in project.store.find_runs(status="FAILED") if run.tags["rhstudy.stage"] == "make-data"]
    assert failed[0].tags["rhstudy.exit_code"] == "2"
    assert failed[0].tags["rhstudy.container.exit_code"] == "2"
