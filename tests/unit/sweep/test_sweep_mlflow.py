"""A sweep in MLflow's own store, read with MLflow's client: nested runs, truthful status, numbers, curves, links."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeSweep, fake_sweep
from mlflow.tracking import MlflowClient
from storages import trials_of
from test_sweep_pruning import THREE, Reporting

from rhstudy.data.knobs import Knobs
from rhstudy.errors import InterruptedRunError
from rhstudy.sweep.course import Course
from rhstudy.sweep.measure import Measured
from rhstudy.tracking.mlflow_recorder import MlflowRecorder
from rhstudy.tracking.mlflow_store import make_database

STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}


class Eventful(Reporting):
    """The second trial raises, the fourth is interrupted."""

    def __call__(self, knobs: Knobs, run_id: str, course: Course) -> Measured:
        if self.count == 1:
            self.count += 1
            raise ValueError("no such passage")
        found = super().__call__(knobs, run_id, course)
        if self.count == 4:
            raise InterruptedRunError("stop")
        return found


def in_mlflow(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> Callable[[], MlflowClient]:
    """Let the sweep record in an sqlite store, and open that with MLflow's client."""
    database = sweep.folder / "mlflow.db"
    make_database(database, sweep.folder / "mlartifacts")
    uri = f"sqlite:///{database}"
    recorder = MlflowRecorder(uri, "sweeps", download_dir=sweep.folder / "down", system_metrics=False)
    monkeypatch.setattr(FakeSweep, "recorder", property(lambda _: recorder))
    return lambda: MlflowClient(uri)


def test_mlflow_shows_a_parent_and_a_nested_run_a_trial_each_with_its_true_end(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    sweep = fake_sweep(world, tmp_path, pruner="successive_halving", report_at=THREE, num_trials=8)
    client = in_mlflow(sweep, monkeypatch)()
    with pytest.raises(InterruptedRunError):
        sweep(Eventful())
    (experiment,) = client.search_experiments(filter_string="name = 'sweeps'")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`rhstudy.stage` = 'sweep'")
    assert parent.info.status == "KILLED"
    result = sweep(Reporting())

    parent = client.get_run(result.run_id)
    assert (parent.info.status, parent.data.tags.get("mlflow.parentRunId")) == ("FINISHED", None)
    assert parent.data.metrics["num_failed"] == 1.0
    nested = client.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    runs = {run.info.run_id: run for run in nested}
    states = set()
    for trial in trials_of(sweep):
        run = runs.pop(trial.user_attrs["run_id"])
        lost = trial.state.name == "FAIL" and "error" not in trial.user_attrs
        states.add("LOST" if lost else trial.state.name)
        assert run.info.status == ("KILLED" if lost else STATUS.get(trial.state.name, "FAILED"))
        assert run.data.tags["rhstudy.sweep.trial"] == str(trial.number)
        for knob, value in trial.params.items():
            shown = run.data.params[f"values.{knob}"]
            assert shown == value if isinstance(value, str) else float(shown) == value
        curve = client.get_metric_history(run.info.run_id, "checkpoint_weighted_head_recall")
        assert {point.step: point.value for point in curve} == trial.intermediate_values
        if trial.state.name == "COMPLETE":
            assert run.data.metrics["objective"] == trial.value
            assert run.data.tags["rhstudy.run.detect"] == "d"
    assert states == {"COMPLETE", "PRUNED", "FAIL", "LOST"}
    assert not runs
    listed = {item.path for item in client.list_artifacts(parent.info.run_id, "sweep")}
    assert {"sweep/trials.csv", "sweep/best.toml"} <= listed

    launched = client.create_run(experiment.experiment_id)  # as `mlflow run` does for a process that it starts
    monkeypatch.setenv("MLFLOW_RUN_ID", launched.info.run_id)
    assert sweep().run_id == result.run_id
    launched = client.get_run(launched.info.run_id)
    assert (launched.info.run_name, launched.info.status) == ("fake", "FINISHED")
    assert launched.data.tags["rhstudy.reused_run_id"] == result.run_id
    assert launched.data.tags["mlflow.note.content"] == f"It took part in the sweep of run {result.run_id}."


def test_optunas_dashboard_lists_the_sweep_in_its_journal(sweep: FakeSweep) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    sweep(num_trials=3)
    application = dashboard.wsgi(JournalStorage(JournalFileBackend(str(sweep.config.storage))))

    def get(path: str, query: str = "") -> str:
        said: list[str] = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query, "wsgi.url_scheme": "http"}
        body = b"".join(application(environ, lambda status, headers, *_: said.append(status)))
        assert said[0].startswith("200"), (said, body)
        return body.decode()

    assert '"study_name": "fake"' in get("/api/studies").replace('":"', '": "')
    shown = get("/api/studies/0", "after=0")
    assert all(f'"number":{number}' in shown.replace(" ", "") for number in range(3))
