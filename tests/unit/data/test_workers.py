"""Prompts built by several processes are those of one, row by row, and none of the processes outlives its work."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_tokenizer import SmallTokenizer
from task_worlds import musique_row, write_passages, write_rows
from tokenizers import Tokenizer

from rhstudy.children import start_module
from rhstudy.configs import digest_view
from rhstudy.data import build as build_module
from rhstudy.data import workers as module
from rhstudy.data.build import Build, build_dataset
from rhstudy.data.config import DataConfig
from rhstudy.data.facts import UnbuildableRowError
from rhstudy.data.knobs import Knobs
from rhstudy.data.prompts import OneByOne
from rhstudy.data.workers import MANY_TOKENS, Workers, _sendable, num_workers_for
from rhstudy.errors import InputError, StudyError

Make = Callable[..., DataConfig]
RECIPES = {
    "real": Knobs(name="real"),
    "symbolic": Knobs(name="symbolic", concept_expression="symbolic", context_diversity="templated"),
    "templated": Knobs(name="t", concept_expression="templated", context_diversity="templated", real_fraction=0.4),
}


@pytest.fixture(scope="module")
def tokenizer(bpe: Tokenizer) -> SmallTokenizer:
    return SmallTokenizer(bpe)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Workers]:
    """Every `Workers` that is started."""
    found: list[Workers] = []

    def start(*given: Any) -> Workers:
        found.append(Workers(*given))
        return found[-1]

    monkeypatch.setattr(build_module, "Workers", start)
    return found


def pids(workers: Workers) -> list[int]:
    return [process.pid for process in workers._processes]


def living(numbers: list[int]) -> list[int]:
    return [number for number in numbers if Path(f"/proc/{number}").is_dir()]


@pytest.mark.parametrize("name", RECIPES)
def test_any_number_of_processes_gives_the_same_rows(
    name: str, config: Make, tokenizer: SmallTokenizer, started: list[Workers]
) -> None:
    given = config(knobs=RECIPES[name], num_examples=11, parts=("train", "eval"))
    one, *others = (build_dataset(dataclasses.replace(given, num_workers=count), tokenizer) for count in (1, 2, 3))
    assert [len(pids(workers)) for workers in started] == [2, 3]
    for other in others:
        assert other.parts == one.parts
        assert other.card == one.card
    assert len(one.parts["eval"]) == 12
    assert living([number for workers in started for number in pids(workers)]) == []


def dropping(folder: Path, **changes: Any) -> DataConfig:
    """Rows of which every second is too long, so that what is drawn ahead must be drawn again."""
    rows = [musique_row(number) for number in range(24)]
    for number in range(0, 24, 2):
        rows[number]["paragraphs"][1]["paragraph_text"] += " So they went." * 800
    given: dict[str, Any] = {
        "task": "musique", "train_file": write_rows(folder / "rows.jsonl", rows), "num_tokens": 1400,
        "passages_file": write_passages(folder / "passages.jsonl"), "num_examples": 40, "on_bad_row": "skip",
    }  # fmt: skip
    return DataConfig(**{**given, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": ("train", "eval", "dev")},
        {"num_distinct": 7},
        {"knobs": Knobs(name="half", concept_expression="symbolic", real_fraction=0.5)},
        {"knobs": Knobs(name="few", distinct_share=0.3)},
    ],
)
def test_what_is_begun_ahead_of_a_dropped_row_changes_nothing(
    changes: dict[str, Any], tmp_path: Path, tokenizer: SmallTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dropping(tmp_path, **changes)
    plain = build_dataset(given, tokenizer)
    monkeypatch.setattr(OneByOne, "room", 5)
    ahead = build_dataset(given, tokenizer)
    assert ahead.parts == plain.parts
    assert ahead.card == plain.card
    assert plain.card["dropped_rows"]["train"]


def test_dropped_rows_among_processes(tmp_path: Path, tokenizer: SmallTokenizer) -> None:
    given = dropping(tmp_path, num_examples=20)
    one, two = (build_dataset(dataclasses.replace(given, num_workers=count), tokenizer) for count in (1, 2))
    assert two == one
    assert one.card["dropped_rows"]["train"]


def test_a_row_that_cannot_be_built_ends_the_build_with_the_same_message(
    tmp_path: Path, tokenizer: SmallTokenizer, started: list[Workers]
) -> None:
    given = dropping(tmp_path, on_bad_row="error")
    raised = []
    for count in (1, 2):
        with pytest.raises(UnbuildableRowError, match=r"data\.num_tokens must be longer than the needle") as caught:
            build_dataset(dataclasses.replace(given, num_workers=count), tokenizer)
        raised.append(caught.value)
    assert str(raised[0]) == str(raised[1])
    assert raised[1].exit_code == 2
    assert living(pids(started[0])) == []


@contextlib.contextmanager
def building(config: DataConfig, tokenizer: SmallTokenizer) -> Iterator[tuple[Build, Iterator[Any]]]:
    with contextlib.closing(Build(config, tokenizer)) as build:
        examples = build.examples("train")
        next(examples)
        yield build, examples


def test_a_process_that_is_killed_is_named_and_an_interrupt_leaves_none(
    config: Make, tokenizer: SmallTokenizer, started: list[Workers]
) -> None:
    given = config(num_examples=40, num_workers=2)
    with building(given, tokenizer) as (_, examples):
        os.kill(pids(started[0])[1], signal.SIGKILL)
        with pytest.raises(StudyError, match=r"must live until the last one is built, got <status -9>\. .*num_workers"):
            list(examples)
    assert living(pids(started[0])) == []
    interrupted = False
    try:
        with building(given, tokenizer):
            assert len(living(pids(started[1]))) == 2
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted
    assert living(pids(started[1])) == []


def test_a_process_ends_with_the_one_that_started_it(config: Make, tokenizer: SmallTokenizer) -> None:
    process = start_module("rhstudy.data.workers", text=False)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps((config(), tokenizer)))
    process.stdin.close()  # as the system does for a parent that was killed
    assert process.wait(timeout=60) == 0
    assert process.stdout is not None
    process.stdout.close()


def test_few_examples_are_on_their_way_at_a_time(config: Make, tokenizer: SmallTokenizer) -> None:
    with building(config(num_examples=40, num_workers=2), tokenizer) as (build, examples):
        time.sleep(0.1)
        assert build._workers is not None
        assert build._workers.room == 6
        assert build._workers._num_begun <= 1 + 6
        assert next(examples).example_id.startswith("train-00001-")


def test_small_builds_stay_in_this_process(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "num_usable_cores", lambda: 8)
    large = config(num_examples=1000, num_tokens=MANY_TOKENS // 1000)
    assert num_workers_for(large, 1000) == 2
    assert num_workers_for(large, 999) == 1
    assert num_workers_for(config(num_workers=5), 40) == 5
    assert num_workers_for(config(num_workers=5), 3) == 3
    monkeypatch.setattr(module, "num_usable_cores", lambda: 1)
    assert num_workers_for(large, 1000) == 1


def test_the_number_of_processes_is_no_part_of_the_data(config: Make) -> None:
    assert digest_view(config(num_workers=3)) == digest_view(config())
    with pytest.raises(InputError, match=r"data\.num_workers must be at least 0, got -1"):
        config(num_workers=-1)


def test_errors_of_the_house_travel_whole_and_others_say_where_they_were_raised() -> None:
    error = pickle.loads(pickle.dumps(_sendable(UnbuildableRowError("a must b"))))
    assert isinstance(error, UnbuildableRowError)
    assert str(error) == "a must b"
    try:
        json.loads("{")
    except ValueError as caught:
        sent = pickle.loads(pickle.dumps(_sendable(caught)))
    assert isinstance(sent, RuntimeError)
    assert "test_workers.py" in str(sent)
    assert "JSONDecodeError" in str(sent)
