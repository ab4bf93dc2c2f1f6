"""The quickstart in its short size, as a person starts it: the shipped model, Python's own text, nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import Here, Outcome, give_store, in_own_process, in_this_process, mlflow_store

from rhstudy.configs import TrackingConfig
from rhstudy.plan import plan_arms
from rhstudy.quickstart import FURTHER_RECIPES, RECIPES, QuickstartConfig, study_config
from rhstudy.tracking.recorder import Recorder

TRACKING = TrackingConfig(system_metrics=False)
_ROW = re.compile(r"^(\w+)(?: \(reference\))? +(\d+) +(\d\.\d{3}) \[[^]]*\] +(\S+) +(\S+) +(\S+) +(\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def first(folder: Path) -> Outcome:
    return in_own_process(folder, "quickstart", "--size", "short")


@pytest.fixture(scope="module")
def store(folder: Path, first: Outcome) -> Recorder:
    assert first.code == 0, first.err[-3000:]
    return mlflow_store(folder)


def test_it_ends_with_table_correlations_knockout_and_where_to_look(first: Outcome) -> None:
    assert first.code == 0, first.err[-3000:]
    assert "literal cue retrieval (copying, not question answering), model tiny, 8 eval rows an arm" in first.out
    assert [(row[0], row[1]) for row in _ROW.findall(first.out)] == [
        ("real", "0"), ("real_in_filler", "0"), ("symbolic", "0"), ("untuned", "0"), ("untuned_native", "0"),
    ]  # fmt: skip
    assert "Spearman of F1 with head recall: n/a, n = 2 recipes" in first.out
    assert re.search(r"Knockout \(an illustration: 5 draws\) of the reference's top 5 heads: exact match \d", first.out)
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in first.err
    page = Path(first.facts["report_dir"], "report.html")
    assert str(page) in first.err
    assert page.read_text(encoding="utf-8").count("<img") >= 5


def test_every_number_of_the_table_is_in_the_store(first: Outcome, store: Recorder) -> None:
    arms = {run.name: run for run in store.find_runs({"rhstudy.stage": "arm"}, "FINISHED")}
    rows = _ROW.findall(first.out)
    assert len(rows) == len(arms)
    for recipe, seed, exact, f1, recall, weighted, heads in rows:
        logged = {point.key: point.value for point in store.metric_history(arms[f"{recipe}/seed{seed}"].run_id)}
        shown = {"exact_match": exact, "f1": f1, "head_recall": recall, "weighted_head_recall": weighted}
        shown |= {"num_retrieval_heads": heads}
        for name, text in shown.items():
            decimals = len(text.partition(".")[2])
            assert f"{logged[name]:.{decimals}f}" == text, (recipe, name)


def test_the_knockout_line_is_in_the_store(first: Outcome, store: Recorder) -> None:
    (run,) = store.find_runs({"rhstudy.stage": "intervene"}, "FINISHED")
    logged = {point.key: point.value for point in store.metric_history(run.run_id)}
    found = re.search(r"exact match ([\d.]+) -> ([\d.]+); of as many random heads, [^:]*: ([\d.]+)", first.out)
    assert found
    names = ("exact_match_baseline", "exact_match_top5", "exact_match_random5")
    assert [f"{logged[name]:.3f}" for name in names] == list(found.groups())


def test_nothing_is_left_running_and_nothing_failed(store: Recorder) -> None:
    runs = store.find_runs()
    assert len(runs) >= 12
    assert {run.status for run in runs} == {"FINISHED"}


def test_started_again_it_reuses_everything_and_says_the_same(folder: Path, first: Outcome, store: Recorder) -> None:
    before = {run.run_id for run in store.find_runs()}
    again = in_this_process(folder, "quickstart", "--size", "short")
    assert again.code == 0, again.err[-3000:]
    assert again.facts["reused"]
    assert again.out.splitlines()[:-1] == first.out.splitlines()[:-1]
    assert {run.run_id for run in store.find_runs()} == before


def test_the_same_seed_gives_the_same_numbers_in_another_process_and_store(tmp_path: Path, first: Outcome) -> None:
    give_store(tmp_path)
    other = in_this_process(tmp_path, "quickstart", "--size", "short")
    assert other.code == 0, other.err[-3000:]
    assert other.out.splitlines()[:-1] == first.out.splitlines()[:-1]


def test_the_full_size_has_ten_recipes_beside_the_reference_and_two_seeds_each() -> None:
    config = study_config(QuickstartConfig(tracking=TRACKING))
    arms = list(plan_arms(config))
    assert {arm.recipe for arm in arms if arm.knobs} == {*RECIPES, *(knobs.name for knobs in FURTHER_RECIPES)}
    assert sum(arm.knobs is not None for arm in arms) == 22
    assert config.data.num_tokens == 1024
    assert config.statistics.min_bootstrap_n <= len(config.all_recipes) - 1


def test_the_real_thing_takes_another_model_and_questions() -> None:
    config = study_config(QuickstartConfig(model="smollm2-135m", mdqa="rows.jsonl", tracking=TRACKING))
    assert (config.data.task, config.data.train_file, config.model.name) == ("mdqa", "rows.jsonl", "smollm2-135m")
    assert config.context.rope_theta == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "tny"), "model.name must be a known name, a local folder or a hub id"),
        (("--mdqa", "no-such-file.jsonl"), "data.train_file must be an existing file, got 'no-such-file.jsonl'"),
        (("--seed", "-1"), "seed must be at least 0, got -1"),
        (("--size", "huge"), "size"),
    ],
)
def test_bad_input_is_named_and_ends_with_exit_code_2(
    here: Here, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    outcome = here("quickstart", *arguments)
    assert outcome.code == 2, outcome.err[-2000:]
    assert said in outcome.err
    if (tmp_path / "mlflow.db").exists():
        assert "RUNNING" not in {run.status for run in mlflow_store(tmp_path).find_runs()}


def test_a_dry_run_prints_the_config_and_runs_nothing(here: Here, tmp_path: Path) -> None:
    outcome = here("quickstart", "--dry-run")
    assert json.loads(outcome.out)["config"]["model"] == "tiny"
    assert not (tmp_path / "mlflow.db").exists()
