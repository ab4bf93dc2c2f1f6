"""A study killed in the middle of a stage, again and again, ends as an unbroken one does."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

from commands import (
    Here,
    content_digests,
    folder_store,
    give_store,
    in_own_process,
    interrupted,
    mlflow_store,
    stage_of,
    study_values,
    write_config,
)

from rhstudy.tracking.recorder import Recorder


def partial_work(folder: Path, name: str) -> Callable[[], bool]:
    """Whether some unfinished stage has written to its resumable file `name`."""

    def there() -> bool:
        try:
            return any(path.stat().st_size > 0 for path in (folder / "cache" / "work").glob(f"*/{name}"))
        except FileNotFoundError:  # finished and tidied away while we looked
            return False

    return there


def finished(store: Recorder) -> dict[str, float | None]:
    """Run id -> end time of every finished stage run."""
    runs = store.find_runs(status="FINISHED")
    return {run.run_id: run.end_time_s for run in runs if "rhstudy.stage_digest" in run.tags}


def values(world: Path) -> dict[str, object]:
    few = {"recipes": ["real", "symbolic"], "ceiling_seeds": [], "baselines": []}
    training = {"batch_size": 1, "num_epochs": 3, "save_every_steps": 1, "learning_rate": 0.01}
    return study_values(world, **few, training=training, answering={"max_new_tokens": 12})


def test_killed_anywhere_and_started_again_it_loses_nothing(world: Path, here: Here, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    write_config(folder / "study.toml", values(world))
    give_store(folder)
    store = mlflow_store(folder)

    first = interrupted(folder, signal.SIGKILL, partial_work(folder, "training-state.pt"), "study", "study.toml")
    assert first.code == -signal.SIGKILL
    assert {stage_of(run) for run in store.find_runs(status="RUNNING")} == {"study", "arm", "finetune"}
    done = finished(store)
    assert len(done) == 3  # the score rows, the eval rows and the first training set

    second = interrupted(folder, signal.SIGKILL, partial_work(folder, "predictions.jsonl"), "study", "study.toml")
    assert second.code == -signal.SIGKILL
    assert "left by a process that is gone" in second.err
    assert stage_of(store.find_runs(status="RUNNING")[0]) == "evaluate"
    assert done.items() < finished(store).items()
    done = finished(store)

    third = interrupted(folder, signal.SIGINT, partial_work(folder, "training-state.pt"), "study", "study.toml")
    assert third.code == 1
    assert "Start the same command again" in third.err
    assert "Traceback" not in third.err
    assert not store.find_runs(status="RUNNING")
    newest = max(store.find_runs(), key=lambda run: run.start_time_s)
    assert (stage_of(newest), newest.status) == ("finetune", "KILLED")
    (root,) = [run for run in store.find_runs() if stage_of(run) == "study"]
    assert root.status == "KILLED"
    assert done.items() < finished(store).items()
    done = finished(store)

    last = in_own_process(folder, "study", "study.toml")
    assert last.code == 0, last.err[-3000:]
    assert done.items() < finished(store).items()
    assert {run.status for run in store.find_runs()} == {"FINISHED", "KILLED"}
    (root,) = [run for run in store.find_runs() if stage_of(run) == "study"]
    assert (root.run_id, root.status) == (last.facts["run_id"], "FINISHED")
    assert not [path for path in (folder / "cache" / "work").iterdir() if path.name != "locks"]

    for run in (run for run in store.find_runs(status="FINISHED") if stage_of(run) == "finetune"):
        steps = [point.step for point in store.metric_history(run.run_id) if point.key == "loss"]
        assert steps == list(range(int(run.metrics["num_steps"])))

    write_config(tmp_path / "study.toml", values(world))
    unbroken = here("study", "study.toml", "--tracking.recorder", "folder")
    assert unbroken.code == 0, unbroken.err[-3000:]
    one, other = (Path(run.facts["artifact_dir"]) / "analysis.json" for run in (last, unbroken))
    assert json.loads(one.read_text()) == json.loads(other.read_text())
    assert content_digests(store) == content_digests(folder_store(tmp_path))
