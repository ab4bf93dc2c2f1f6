"""Stages done by another process: here a launcher that does them at once, in an empty context as that process has."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from stage_examples import ToyBody, ToyConfig, toy_spec

from rhstudy.errors import InputError, StudyError
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import Launched, Launcher, StageSpec, run_stage, stages_launched_by


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    """The quick one; what goes through the store is tested with both."""
    return FolderRecorder(tmp_path / "runs")


class FakeLauncher:
    """Does the stage and counts how often it was asked to."""

    def __init__(self, recorder: Recorder, same_digests: bool = True) -> None:
        self.same_digests = same_digests
        self.asked: list[StageSpec] = []
        self._recorder = recorder

    def __call__(self, spec: StageSpec) -> Launched:
        self.asked.append(spec)
        result = contextvars.Context().run(run_stage, self._recorder, spec, ToyBody("done elsewhere"))
        return Launched(run_id=result.run_id, reused=result.reused)


def test_an_unfinished_stage_is_the_launchers(make_recorder: Callable[[], Recorder], tmp_path: Path) -> None:
    recorder = make_recorder()
    launcher, body, spec = FakeLauncher(recorder), ToyBody(), toy_spec(tmp_path / "work")
    assert isinstance(launcher, Launcher)
    with stages_launched_by(launcher):
        result = run_stage(recorder, spec, body)
    assert (launcher.asked, body.calls, result.reused) == ([spec], 0, False)
    assert result.artifacts.file("scores.txt").read_text() == "done elsewhere"
    assert result.summary["f1"] == result.artifacts.summary()["f1"] == 0.25
    assert len(recorder.find_runs()) == 1


@pytest.mark.parametrize("same_digests", [True, False])
def test_finished_stages_are_looked_up_here_when_digests_are_the_same(
    recorder: Recorder, tmp_path: Path, same_digests: bool
) -> None:
    spec = toy_spec(tmp_path / "work")
    first = run_stage(recorder, spec, ToyBody())
    launcher = FakeLauncher(recorder, same_digests)
    with stages_launched_by(launcher):
        again = run_stage(recorder, spec, ToyBody())
        other = run_stage(recorder, toy_spec(tmp_path / "work", ToyConfig(size=9)), ToyBody())
    assert (again.run_id, again.reused) == (first.run_id, True)
    assert (other.run_id != first.run_id, other.reused) == (True, False)
    assert len(launcher.asked) == (1 if same_digests else 2)


def test_what_a_launcher_leaves_is_verified(tmp_path: Path) -> None:
    recorder = FolderRecorder(tmp_path / "runs")

    class Careless(FakeLauncher):
        def __call__(self, spec: StageSpec) -> Launched:
            launched = super().__call__(spec)
            (recorder.artifact_path(launched.run_id) / "scores.txt").write_text("changed")
            return launched

    with stages_launched_by(Careless(recorder)), pytest.raises(InputError, match="scores.txt"):
        run_stage(recorder, toy_spec(tmp_path / "work"), ToyBody())


def test_a_run_that_the_launcher_names_must_be_there(recorder: Recorder, tmp_path: Path) -> None:
    class Wrong(FakeLauncher):
        def __call__(self, spec: StageSpec) -> Launched:
            return Launched(run_id="0" * 32, reused=False)

    with stages_launched_by(Wrong(recorder)), pytest.raises(InputError, match="run_id must be a recorded run"):
        run_stage(recorder, toy_spec(tmp_path / "work"), ToyBody())


def test_a_launchers_error_is_the_stages_and_after_the_block_it_is_gone(recorder: Recorder, tmp_path: Path) -> None:
    class Failing(FakeLauncher):
        def __call__(self, spec: StageSpec) -> Launched:
            raise StudyError("the engine is gone")

    body = ToyBody()
    with pytest.raises(StudyError, match="the engine is gone"), stages_launched_by(Failing(recorder)):
        run_stage(recorder, toy_spec(tmp_path / "work"), body)
    run_stage(recorder, toy_spec(tmp_path / "work"), body)
    assert body.calls == 1


def test_a_block_inside_a_block_and_other_threads(recorder: Recorder, tmp_path: Path) -> None:
    outer, inner, body = FakeLauncher(recorder), FakeLauncher(recorder), ToyBody()
    sizes = iter(range(10))

    def work() -> None:
        run_stage(recorder, toy_spec(tmp_path / "work", ToyConfig(size=next(sizes))), body)

    with stages_launched_by(outer):
        with stages_launched_by(inner):
            work()
        work()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert (len(inner.asked), len(outer.asked)) == (1, 1)
    # A new thread has a context of its own: whoever starts one for stages must hand it the caller's.
    assert body.calls == 1


def test_a_bad_seed_is_refused_before_anything_is_launched(recorder: Recorder, tmp_path: Path) -> None:
    launcher = FakeLauncher(recorder)
    with stages_launched_by(launcher), pytest.raises(InputError, match="seed must be at least 0"):
        run_stage(recorder, toy_spec(tmp_path / "work", seed=-1), ToyBody())
    assert not launcher.asked
