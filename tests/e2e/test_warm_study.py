"""A study that builds its data sets ahead ends with the runs, files and numbers of one that does not."""

from __future__ import annotations

from pathlib import Path

from commands import FinishedStudy, content_digests, folder_store, in_own_process, study_values, write_config


def test_building_ahead_changes_no_digest(study: FinishedStudy, world: Path, tmp_path: Path) -> None:
    values = study_values(world, build_ahead="on", tracking={"recorder": "folder"})
    write_config(tmp_path / "study.toml", values)
    outcome = in_own_process(tmp_path, "study", "study.toml")
    assert outcome.code == 0, outcome.err[-3000:]
    store = folder_store(tmp_path)
    found, expected = content_digests(store), content_digests(study.store)
    assert len(found) > 10
    assert found.items() <= expected.items()
    tagged = {run.name for run in store.find_runs() if "rhstudy.built_ahead_s" in run.tags}
    assert tagged == {f"make-data {arm}" for arm in ("real/seed1", "templated_in_filler/seed0", "symbolic/seed0")}
    parents = {run.name: run.parent_run_id for run in store.find_runs()}
    arms = {run.run_id: run.name for run in store.find_runs() if run.tags.get("rhstudy.stage") == "arm"}
    assert all(arms[parents[f"make-data {name}"]] == name for name in ("real/seed1", "symbolic/seed0"))
