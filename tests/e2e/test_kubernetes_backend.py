"""MLflow's whole Kubernetes backend on a fake engine and a fake cluster that really runs the job's command."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import ROOT, Here, data_values, environment, give_store, mlflow_store, write_config
from fake_cluster import DIGEST, FakeCluster, FakeEngine
from mlflow.exceptions import ExecutionException


@dataclass(frozen=True)
class Lab:
    project: Path
    backend: Path
    engine: FakeEngine
    cluster: FakeCluster


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def lab(here: Here, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    outcome = here("kubernetes", "--repository", "registry.example.org/me/rhstudy", "--namespace", "research",
                   "--num-gpus", "0")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "mlflow run . -b kubernetes --backend-config kubernetes/kubernetes-backend.json --build-image" in outcome.err
    project, programs = tmp_path / "project", tmp_path / "bin"
    project.mkdir()
    programs.mkdir()
    shutil.copy(ROOT / "mlproject", project)
    model = {"name": str(world / "model")}
    # A path with a blank and a parameter left empty: both must reach the command as they were given.
    write_config(project / "my data.toml", {"data": data_values(world, num_examples=2), "model": model})
    give_store(tmp_path)
    _script(programs / "docker", "exit 0")
    _script(programs / "rhstudy", f'exec "{sys.executable}" -m rhstudy.cli "$@"')
    engine = FakeEngine(tmp_path / "image")
    cluster = FakeCluster(tmp_path / "image", environment(tmp_path, PATH=f"{programs}:/usr/bin:/bin"))
    context = {"name": "lab", "context": {"cluster": "lab", "user": "me"}}
    account = {
        "apiVersion": "v1", "kind": "Config", "current-context": "lab", "contexts": [context],
        "clusters": [{"name": "lab", "cluster": {"server": f"http://{cluster.address}"}}],
        "users": [{"name": "me", "user": {}}],
    }  # fmt: skip
    (tmp_path / "account.yaml").write_text(yaml.safe_dump(account))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "account.yaml"))
    monkeypatch.setenv("DOCKER_HOST", f"tcp://{engine.address}")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    yield Lab(project, tmp_path / "kubernetes" / "kubernetes-backend.json", engine, cluster)
    engine.stop()
    cluster.stop()


def launch(lab: Lab, entry_point: str, **parameters: str) -> Any:
    import mlflow.projects
    from kubernetes.config import kube_config
    from mlflow.projects.kubernetes import KubernetesSubmittedRun

    # The client reads KUBECONFIG once, at import; MLflow asks every 5 s.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(lab.backend.parents[1] / "account.yaml"))
        patch.setattr(KubernetesSubmittedRun, "POLL_STATUS_INTERVAL", 0.2)
        return mlflow.projects.run(
            str(lab.project), entry_point, parameters=parameters, experiment_name="rhstudy", backend="kubernetes",
            backend_config=str(lab.backend), build_image=True,
        )  # fmt: skip


def test_a_job_that_succeeds_leaves_its_run_finished(lab: Lab, tmp_path: Path) -> None:
    launched = launch(lab, "make-data", config="my data.toml", **{"data.seed": "3"})
    (job,) = lab.cluster.jobs.values()
    container = job["spec"]["template"]["spec"]["containers"][0]
    # What MLflow makes of a blank, and why the template sets RHSTUDY_QUOTED_ARGUMENTS.
    assert container["command"][2:] == ["make-data", "'my data.toml'", "--data.seed", "3"]
    assert container["image"] == f"{lab.engine.tag}@{DIGEST}"
    assert lab.engine.tag.startswith("registry.example.org/me/rhstudy")
    assert [item for item in lab.engine.requests if "/push" in item]
    (run,) = mlflow_store(tmp_path).find_runs()
    assert (run.run_id, run.status, run.name) == (launched.run_id, "FINISHED", "make-data real train")
    assert run.tags["mlflow.project.backend"] == "kubernetes"
    assert run.params["data.seed"] == "3"
    assert run.metrics["num_examples_train"] == 2


def test_a_parameter_left_empty_is_not_passed_on(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(ExecutionException):  # no data is given, so it fails; but not on the empty config
        launch(lab, "make-data")
    ((name, output),) = lab.cluster.outputs.items()
    command = lab.cluster.jobs[name]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[-1] == "''"
    assert "config must be an existing file" not in output
    assert "data.train_file must be given" in output


def test_a_job_that_fails_leaves_its_run_failed_with_the_reason(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(ExecutionException, match="failed"):
        launch(lab, "make-data", config="my data.toml", **{"data.num_tokens": "80"})
    (run,) = mlflow_store(tmp_path).find_runs()
    assert (run.status, run.tags["rhstudy.exit_code"]) == ("FAILED", "2")
    assert "data.num_tokens must be longer than the needle" in run.tags["rhstudy.error"]


def test_a_config_file_and_flags_and_bad_input(here: Here) -> None:
    config = write_config(here.folder / "k.toml", {"repository": "localhost:5000/rhstudy", "node_selector": {"a": "b"}})
    done = here("kubernetes", str(config), "--num-gpus", "2", "--output", "files")
    assert done.code == 0
    template = yaml.safe_load((here.folder / done.facts["template"]).read_text())
    pod = template["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"a": "b"}
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    for flag, value in (("--namespace", "No_Label"), ("--num-gpus", "-1"), ("--no-such-key", "1")):
        assert here("kubernetes", str(config), flag, value).code == 2
    assert here("kubernetes").code == 2
