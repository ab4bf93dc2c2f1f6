"""`mlflow run` three ways: MLflow's own Docker backend, ours in a container, ours on the host. One result."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from launching import CALLER, PLACES, arguments, as_another_caller, mlflow_run
from projects import Project

from rhstudy.containers.image import Image
from rhstudy.data.python_docs import python_docs_file
from rhstudy.tracking.recorder import RunRecord

Launched = Mapping[str, tuple[Project, subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="module")
def launched(make_project: Callable[[Path], Project], tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """The short quickstart, once in each place, each with a project folder, store and cache of its own."""
    found = {}
    docs = python_docs_file(tmp_path_factory.mktemp("docs")).read_text(encoding="utf-8")
    for place in PLACES:
        project = make_project(tmp_path_factory.mktemp(place))
        # The image's Python documents itself in other words than this one.
        (project.folder / "docs.jsonl").write_text(docs, encoding="utf-8")
        given = ["-e", "quickstart", "-P", "size=short", "-P", "passages=docs.jsonl", "-P", "device=cpu"]
        found[place] = (project, mlflow_run(project, [*arguments(place), *given]))
    return found


def stage_runs(project: Project) -> dict[str, RunRecord]:
    runs = [run for run in project.store.find_runs() if "rhstudy.stage_digest" in run.tags]
    return {run.tags["rhstudy.stage_digest"]: run for run in runs}


@pytest.mark.parametrize("place", PLACES)
def test_every_run_is_finished_and_nested(launched: Launched, place: str) -> None:
    project, done = launched[place]
    assert done.returncode == 0, done.stderr[-3000:]
    runs = project.store.find_runs()
    assert {run.status for run in runs} == {"FINISHED"}
    (top,) = [run for run in runs if not run.parent_run_id]
    assert (top.name, top.tags["mlflow.project.entryPoint"]) == ("quickstart", "quickstart")
    arms = [run for run in runs if run.tags["rhstudy.stage"] == "arm"]
    assert {run.parent_run_id for run in arms} == {top.run_id}
    assert len(arms) == 5
    folders = [project.store.artifact_path(run.run_id) for run in stage_runs(project).values()]
    assert all((folder / "manifest.json").is_file() for folder in folders)
    assert done.stdout.splitlines()[-1].startswith("{") or place == "mlflow"


@pytest.mark.parametrize("place", PLACES[1:])
def test_artifacts_and_metrics_are_the_same_everywhere(launched: Launched, place: str) -> None:
    first, other = (stage_runs(launched[name][0]) for name in (PLACES[0], place))
    assert set(first) == set(other)
    for digest, run in first.items():
        twin = other[digest]
        assert run.tags["rhstudy.content_digest"] == twin.tags["rhstudy.content_digest"], run.name
        assert _results(run) == _results(twin), run.name


def _results(run: RunRecord) -> dict[str, str]:
    """Metrics but for times and memory; as text, since NaN is not itself."""
    return {name: repr(value) for name, value in run.metrics.items() if not name.endswith(("_s", "_bytes"))}


def test_the_run_says_what_it_ran_in(launched: Launched, image: Image) -> None:
    project, _ = launched["docker"]
    (top,) = [run for run in project.store.find_runs() if not run.parent_run_id]
    tags = top.tags
    assert tags["mlflow.project.backend"] == "rhstudy"
    assert tags["rhstudy.runtime"] == "docker"
    assert tags["rhstudy.container.image_id"] == tags["mlflow.docker.image.id"] == image.image_id
    assert tags["rhstudy.container.exit_code"] == "0"
    assert "quickstart" in tags["rhstudy.container.command"]
    assert 2e8 < int(tags["rhstudy.container.peak_memory_bytes"]) < 8e9
    host = {run.tags["rhstudy.runtime"] for run in launched["host"][0].store.find_runs() if not run.parent_run_id}
    assert host == {"host"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another caller")
def test_files_belong_to_whoever_called(make_project: Callable[[Path], Project], open_folder: Path) -> None:
    project = make_project(open_folder)
    options = ["-e", "make-data", "-P", "data.train_file=python-docs", "-P", "data.task=cue_retrieval"]
    options += ["-P", "data.num_tokens=256", "-P", "data.num_examples=4", "-P", "model.name=tiny"]
    done = as_another_caller(project, [*arguments("docker"), *options])
    assert done.returncode == 0, done.stderr[-3000:]
    written = [path for path in project.folder.rglob("*") if path.is_file()]
    assert {path.lstat().st_uid for path in written} == {CALLER}
    assert any(path.name == "train.parquet" for path in written)
