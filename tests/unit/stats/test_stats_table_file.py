"""Tables that users bring: what is read as what, and every bad file by its message."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rhstudy.errors import InputError
from rhstudy.stats.analysis import analyze_arms
from rhstudy.stats.frame import validate_frame
from rhstudy.stats.statistic import StatisticsSettings
from rhstudy.stats.table_file import read_table, table_arms, table_predictions

HEADER = "task,model,recipe,seed,f1,head_recall\n"
SETTINGS = StatisticsSettings(num_permutations=200, num_resamples=200, num_power_draws=100)


def written(folder, text, name="arms.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_text_stays_text_and_empty_cells_are_unknown(tmp_path):
    rows = "t,m,10,0,0.5,0.4\nt,m,None,1,0.25,\nt,m,NA,2,nan,0.1\n"
    found = read_table(written(tmp_path, "\ufeff" + HEADER + rows), "table")
    assert list(found["recipe"]) == ["10", "None", "NA"]
    assert list(found["seed"]) == [0, 1, 2]
    np.testing.assert_array_equal(found["head_recall"], [0.4, np.nan, 0.1])
    np.testing.assert_array_equal(found["f1"], [0.5, 0.25, np.nan])


def test_parquet_is_read_as_csv_is(tmp_path):
    text = HEADER.strip() + ",contains_real\n" + "t,m,a,0,0.5,0.4,true\nt,m,b,0,0.5,0.4,0\n"
    from_csv = read_table(written(tmp_path, text), "table")
    from_csv.to_parquet(tmp_path / "arms.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "arms.parquet", "table"), from_csv)
    assert list(from_csv["contains_real"]) == [True, False]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("arms.txt", "x", r"table must be a .csv or .parquet file, got '.*arms.txt'. Export the table as CSV"),
        ("arms.csv", HEADER, r"table must have at least one row, got <0 rows> \(.*arms.csv\). Check the file"),
        ("arms.csv", "", r"table must (be a readable .csv file|have at least one row)"),
        ("arms.csv", HEADER.strip() + ",f1\nt,m,a,0,1,1,1\n", r"table must name every column once, got \['f1'\]"),
        ("arms.parquet", "no parquet", r"table must be a readable .parquet file, got '.*arms.parquet'"),
        ("arms.csv", HEADER + "t,m,a,0,high,0.5\n", r"column f1 must hold numbers, got <other values>"),
        ("arms.csv", HEADER + "t,m,a,first,0.5,0.5\n", r"column seed must hold whole numbers, got \['first'\]"),
        ("arms.csv", HEADER + "t,m,,0,0.5,0.5\n", r"column recipe must hold non-empty text, got \[''\]"),
        ("arms.csv", HEADER + "t,m,a,0,55,0.5\n", r"column f1 must be at most 1, got \[55.0\]"),
        ("arms.csv", HEADER + "t,m,a,0,0.5,0.5\n" * 2, r"must have one row per task, model, recipe and seed"),
        ("arms.csv", HEADER.replace("f1", "F") + "t,m,a,0,1,1\n", r"column f1 must be in the arm table"),
        ("arms.csv", HEADER.replace("head_", "") + "t,m,a,0,1,1\n", r"column head_recall must be in the arm table"),
        (
            "arms.csv",
            HEADER.strip() + ",is_untuned\nt,m,a,0,1,1,maybe\n",
            r"column is_untuned must hold true or false, got 'maybe' \(table\). Write true or false",
        ),
    ],
)
def test_bad_tables(tmp_path, name, text, match):
    with pytest.raises(InputError, match=match):
        validate_frame(table_arms(read_table(written(tmp_path, text, name), "table"), "real", "head_recall")[0])


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"table must be an existing file, got '.*no.csv'. Check the path"):
        read_table(tmp_path / "no.csv", "table")


def test_roles_follow_from_recipe_names_unless_given():
    rows = pd.DataFrame(
        {"task": "t", "model": "m", "recipe": ["real", "untuned", "a"], "seed": 0, "f1": 0.5, "head_recall": 0.5}
    )
    arms, ignored = table_arms(rows.assign(remark="x"), "real", "head_recall")
    assert ignored == ("remark",)
    checked = validate_frame(arms)
    assert list(checked["recipe"][checked["is_reference"] & checked["contains_real"]]) == ["real"]
    assert list(checked["recipe"][checked["is_untuned"]]) == ["untuned"]
    given, _ = table_arms(rows.assign(is_reference=[False, False, True]), "real", "head_recall")
    assert list(validate_frame(given).query("is_reference")["recipe"]) == ["a"]


def test_examples_become_marks_of_their_arms():
    rows = pd.DataFrame(
        {"task": "t", "model": "m", "recipe": "a", "seed": 0, "example_id": ["e0", "e1", "e2"], "f1": [0.5, 1.0, None]}
    )
    (arm,) = table_predictions(rows).items()
    assert arm[0] == "t/m/a/0"
    assert [item.unscored for item in arm[1]] == ["", "", "no mark in the table"]
    frame = validate_frame(pd.DataFrame([{"task": "t", "model": "m", "recipe": "a", "seed": 0, "f1": 0.75}]))
    found = analyze_arms(frame, dict([arm]), seed=0, settings=SETTINGS)["groups"][0]["arms"][0]
    assert (found["f1"]["estimate"], found["f1"]["n"], found["num_unscored"]) == (0.75, 2, 1)
    assert found["exact_match"]["reason"] == "not recorded"
    (marks,) = table_predictions(rows.assign(cluster=["doc 1", "doc 1", None])).values()
    assert [item.cluster for item in marks] == ["doc 1", "doc 1", ""]
    for column in ("example_id", "f1"):
        with pytest.raises(InputError, match=f"column {column} must be in the example table"):
            table_predictions(rows.drop(columns=column))
    with pytest.raises(InputError, match=r"example table must have one row per arm and example, got \[\['t', 'm'"):
        table_predictions(pd.concat([rows, rows]))
    with pytest.raises(InputError, match=r"column f1 must hold numbers, got \['good'\]"):
        table_predictions(rows.assign(f1=["good", "0.5", ""]))
