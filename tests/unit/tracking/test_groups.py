from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stage_examples import ToyBody, ToyConfig, toy_spec

from rhstudy.errors import InputError, InterruptedRunError
from rhstudy.tracking.groups import group_run
from rhstudy.tracking.process import end_stale_runs, process_tags
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import StageRun, run_stage


def test_a_group_holds_its_stages_and_finishes(recorder: Recorder, tmp_path: Path) -> None:
    with group_run(recorder, "my study", digest="d", config=ToyConfig(), tags={"mine": "1"}) as study:
        with group_run(recorder, "real", stage="arm", digest="d/real", parent_run_id=study) as arm:
            result = run_stage(recorder, toy_spec(tmp_path / "work", parent_run_id=arm), ToyBody())
        assert recorder.get_run(study).status == "RUNNING"
    record = recorder.get_run(study)
    assert (record.name, record.status, record.params["size"]) == ("my study", "FINISHED", "3")
    assert record.tags.items() >= {"mine": "1", "rhstudy.stage": "study", "rhstudy.exit_code": "0"}.items()
    assert recorder.get_run(arm).parent_run_id == study
    assert recorder.get_run(result.run_id).parent_run_id == arm
    assert (recorder.artifact_path(study) / "config" / "config.toml").is_file()


def test_a_failed_group_is_opened_again_and_loses_its_old_error(recorder: Recorder) -> None:
    with pytest.raises(InputError, match="bad"), group_run(recorder, "s", digest="d") as first:
        raise InputError("bad")
    failed = recorder.get_run(first)
    assert (failed.status, failed.tags["rhstudy.exit_code"], failed.tags["rhstudy.error"]) == ("FAILED", "2", "bad")
    with group_run(recorder, "s", digest="d") as second:
        assert recorder.get_run(second).status == "RUNNING"
    assert second == first
    record = recorder.get_run(first)
    assert (record.status, record.tags["rhstudy.exit_code"], record.tags["rhstudy.error"]) == ("FINISHED", "0", "")


def test_a_finished_group_is_confirmed_even_when_settings_that_change_no_result_changed(recorder: Recorder) -> None:
    with group_run(recorder, "s", digest="d", config=ToyConfig()) as first:
        pass
    with group_run(recorder, "s", digest="d", config=ToyConfig(device="cuda")) as second:
        pass
    assert (first, len(recorder.find_runs())) == (second, 1)
    assert recorder.get_run(first).tags["rhstudy.param.device"] == "cuda"


def test_other_work_or_another_parent_is_another_group(recorder: Recorder) -> None:
    with group_run(recorder, "s", digest="d") as first, group_run(recorder, "s", digest="e") as second:
        with group_run(recorder, "a", digest="a", parent_run_id=first) as third:
            pass
        with group_run(recorder, "a", digest="a", parent_run_id=second) as fourth:
            pass
    assert len({first, second, third, fourth}) == 4


def test_a_signal_kills_stage_and_group(recorder: Recorder, tmp_path: Path) -> None:
    def body(run: StageRun) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        return {}

    with pytest.raises(InterruptedRunError, match="SIGTERM"), group_run(recorder, "s", digest="d") as study:
        run_stage(recorder, toy_spec(tmp_path / "work", parent_run_id=study), body)
    assert [record.status for record in recorder.find_runs()] == ["KILLED", "KILLED"]


def dead_process_tags() -> dict[str, str]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tags = process_tags(child.pid)
    child.communicate(b"\n")
    return tags


def test_a_group_of_a_dead_process_is_taken_over_and_one_of_a_living_process_is_not(recorder: Recorder) -> None:
    living = recorder.create_run("s", "study", tags={**process_tags(), "rhstudy.group_digest": "d"})
    with group_run(recorder, "s", digest="d") as second:
        assert second != living
    dead = recorder.create_run("s", "study", tags={**dead_process_tags(), "rhstudy.group_digest": "e"})
    with group_run(recorder, "s", digest="e") as third:
        assert third == dead
        assert recorder.get_run(third).tags["rhstudy.pid"] == str(os.getpid())
    assert recorder.get_run(third).status == "FINISHED"


def test_end_stale_runs_ends_only_what_is_surely_dead(recorder: Recorder) -> None:
    tags = dead_process_tags()
    dead = recorder.create_run("dead", "study", tags=tags)
    kept = [
        recorder.create_run("mine", "study", tags=process_tags()),
        recorder.create_run("elsewhere", "study", tags={**tags, "rhstudy.host": "another"}),
        recorder.create_run("no tags", "study"),
    ]
    assert end_stale_runs(recorder) == [dead]
    assert recorder.get_run(dead).status == "KILLED"
    assert {recorder.get_run(run_id).status for run_id in kept} == {"RUNNING"}
