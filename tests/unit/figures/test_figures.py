"""Every plot is made without a display, says what it shows, and gives the same bytes twice."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rhstudy import figures
from rhstudy.errors import InputError
from rhstudy.types import HeadSet

NAN = math.nan
ARMS = [
    figures.ArmPoint(recipe="templated", predictor=0.4, f1=0.2, low=0.1, high=0.3),
    figures.ArmPoint(recipe="templated", predictor=0.5, f1=0.3, low=NAN, high=NAN),
    figures.ArmPoint(recipe="symbolic", predictor=NAN, f1=0.1, low=0.0, high=0.2),
    figures.ArmPoint(recipe="limited", predictor=0.4, f1=0.2, low=0.1, high=0.3, contains_real=True),
    figures.ArmPoint(recipe="real", predictor=1.0, f1=0.6, low=0.5, high=0.7, is_point=False),
]


DOSES = [
    figures.DosePoint(dose=1, top=0.4, low=0.3, high=0.5, random=0.5, random_low=0.4, random_high=0.6),
    figures.DosePoint(dose=7, top=0.1, low=NAN, high=NAN, random=0.5, random_low=0.4, random_high=0.6, is_all=True),
    figures.DosePoint(dose=9, top=0.0, low=NAN, high=NAN, random=NAN, random_low=NAN, random_high=NAN),
]
PATCHES = [
    figures.PatchPoint(
        name="intersection", num_heads=7, change=0.2, low=0.1, high=0.3, random=0.0, random_low=-0.1, random_high=0.1,
        null=0.01,
    ),
    figures.PatchPoint(
        name="all_heads", num_heads=270, change=-0.1, low=NAN, high=NAN, random=NAN, random_low=NAN, random_high=NAN,
        null=NAN,
    ),
]  # fmt: skip
DROPS = np.array([[0.1, 0.6, NAN], [-0.2, NAN, NAN]])
BASE = {"estimate": 0.5, "low": 0.4, "high": 0.6}


MODELS = {"recipient": BASE, "donor": {"estimate": 0.8, "low": 0.7, "high": 0.9}, "gap": {**BASE, "estimate": 0.3}}


def head_set(heads):
    return HeadSet(
        heads=frozenset(heads), heads_per_layer=(3, 3), rule="mean score >= 0.1", model="tiny", data_digest="", seed=0
    )


def make(kind):
    mean = np.array([[0.0, 0.5, 0.1], [0.2, 1.0, np.nan]])
    return {
        "head_map": lambda: figures.head_map(mean, head_set({(0, 1), (1, 1)})),
        "empty_head_map": lambda: figures.head_map(np.full((2, 3), np.nan), head_set(set())),
        "recall_scatter": lambda: figures.recall_scatter(ARMS, predictor="head recall", n=2, rho=0.5, p=0.1),
        "empty_scatter": lambda: figures.recall_scatter([], predictor="cosine", n=0, rho=None, p=None),
        "arm_bars": lambda: figures.arm_bars(ARMS),
        "training_loss_curve": lambda: figures.training_loss_curve([1, 2], {"a": [2.0, 1.0], "b": [3.0, 1.0]}),
        "dose_curve": lambda: figures.dose_curve(DOSES, baseline=BASE, metric="f1", title="tiny"),
        "empty_dose_curve": lambda: figures.dose_curve([], baseline=dict.fromkeys(BASE), metric="f1", title="tiny"),
        "patch_bars": lambda: figures.patch_bars(PATCHES, MODELS, "f1", "real -> symbolic"),
        "empty_patch_bars": lambda: figures.patch_bars([], dict.fromkeys(MODELS, dict.fromkeys(BASE)), "f1", "tiny"),
        "drop_map": lambda: figures.drop_map(DROPS, head_set({(0, 1)}), metric="gold_logp", title="tiny"),
        "empty_drop_map": lambda: figures.drop_map(np.full((2, 3), NAN), head_set(set()), metric="f1", title="tiny"),
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "head_map",
        "empty_head_map",
        "recall_scatter",
        "empty_scatter",
        "arm_bars",
        "training_loss_curve",
        "dose_curve",
        "empty_dose_curve",
        "patch_bars",
        "empty_patch_bars",
        "drop_map",
        "empty_drop_map",
    ],
)
def test_same_figure_same_bytes_without_stamps(kind, tmp_path):
    for name in ("a.png", "b.png"):
        figures.save_png(make(kind), tmp_path / name)
    content = (tmp_path / "a.png").read_bytes()
    assert content == (tmp_path / "b.png").read_bytes()
    assert b"tEXt" not in content
    assert b"tIME" not in content


def test_scatter_names_recipes_and_figures_and_counts_what_is_missing():
    axes = make("recall_scatter").axes[0]
    assert axes.get_title() == "F1 and head recall: rho = 0.50, p = 0.1, n = 2 recipes, 1 arms without a value"
    assert sorted(text.get_text() for text in axes.texts if text.get_text()) == ["limited", "real", "templated"]
    assert make("empty_scatter").axes[0].get_title() == "F1 and cosine: rho = n/a, p = n/a, n = 0 recipes"


def test_labels_do_not_overlap():
    arms = [
        figures.ArmPoint(recipe=f"recipe number {i}", predictor=0.1 * (i % 4), f1=0.05 * i, low=NAN, high=NAN)
        for i in range(12)
    ]
    figure = figures.recall_scatter(arms, predictor="x", n=12, rho=0.1, p=0.2)
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts if text.get_text()]
    assert len(boxes) == 12
    assert not any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])


def test_bars_are_sorted_and_a_recipe_without_f1_is_named():
    arms = [*ARMS, figures.ArmPoint(recipe="broken", predictor=NAN, f1=NAN, low=NAN, high=NAN)]
    labels = [label.get_text() for label in figures.arm_bars(arms).axes[0].get_yticklabels()]
    assert labels == ["real", "templated", "limited", "symbolic", "broken (n/a)"]


def test_arm_points_of_an_analysis():
    arm = {
        "recipe": "a",
        "head_recall": None,
        "f1": {"estimate": 0.5, "low": None, "high": 0.6},
        "contains_real": True,
        "is_reference": False,
        "is_untuned": True,
    }
    (point,) = figures.arm_points({"arms": [arm]}, "head_recall")
    assert math.isnan(point.predictor)
    assert (point.f1, point.high, point.contains_real, point.is_point) == (0.5, 0.6, True, False)


def test_head_map_title_and_refusal():
    assert make("head_map").axes[0].get_title() == "tiny\n2 of 6 heads with mean score >= 0.1"
    with pytest.raises(InputError, match=r"heads must lie within 2 layers x 3 heads, got \[\(5, 0\)\]"):
        figures.head_map(np.zeros((2, 3)), head_set({(5, 0)}))


def test_drop_map_is_centred_on_0_and_names_what_drops():
    axes = make("drop_map").axes
    assert axes[0].images[0].get_clim() == (-0.6, 0.6)
    assert axes[0].get_title() == "tiny"
    assert axes[1].get_ylabel() == "drop of log p of the gold answer, nats per token"
    assert np.ma.getmaskarray(axes[0].images[0].get_array()).sum() == 3, "heads that were not tried are blank"
    assert make("empty_drop_map").axes[0].images[0].get_clim() == (-1, 1)
    with pytest.raises(InputError, match=r"heads must lie within 2 layers x 3 heads, got \[\(5, 0\)\]"):
        figures.drop_map(DROPS, head_set({(5, 0)}), metric="f1", title="tiny")


def test_head_map_of_attention_is_named_and_centred_on_0():
    mean = np.array([[-0.2, 0.05], [0.1, np.nan]])
    axes = figures.head_map(mean, head_set({(0, 1)}), "attention_mass")
    image, bar = axes.axes[0].images[0], axes.axes[1]
    assert image.get_clim() == (-0.2, 0.2)
    assert bar.get_ylabel() == "mean attention mass on the needle because of the question"
    assert make("head_map").axes[0].images[0].get_clim() == (0, 1)
    assert make("head_map").axes[1].get_ylabel() == "mean retrieval score"


def test_training_loss_needs_a_loss_per_step():
    with pytest.raises(InputError, match=r"losses\[a\] must have one loss for each of 2 steps, got <1 losses>"):
        figures.training_loss_curve([1, 2], {"a": [1.0]})


def test_dose_curve_names_its_doses_and_the_level_without_a_knockout():
    axes = make("dose_curve").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "7\nall retrieval heads", "9"]
    assert (axes.get_ylabel(), axes.get_title()) == ("F1", "tiny")
    labels = axes.get_legend_handles_labels()[1]
    assert "nothing knocked out: 0.500 (shade: interval)" in labels


def test_dose_points_leave_out_doses_that_could_not_be_given():
    record = {"estimate": 0.5, "low": None, "high": 0.6}
    dose = {"dose": 2, "is_all_retrieval_heads": True, "reason": "", "f1": {"top": record, "random": record}}
    (point,) = figures.dose_points([dose, {**dose, "reason": "the model has 1 heads"}], "f1")
    assert (point.dose, point.top, point.high, point.random_high, point.is_all) == (2, 0.5, 0.6, 0.6, True)
    assert math.isnan(point.low)


def test_patch_bars_stand_between_the_recipient_and_the_donor():
    axes = make("patch_bars").axes[0]
    assert [bar.get_height() for bar in axes.patches if bar.get_width() == 0.5] == [0.2, -0.1]
    levels = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1 and line.get_ls() != "None"]
    assert levels[:2] == [0, 0.3]
    labels = " ".join(axes.get_legend_handles_labels()[1])
    assert "recipient: 0.500" in labels
    assert "donor: 0.800" in labels
    assert "null patch" in labels
    assert [label.get_text() for label in axes.get_xticklabels()] == ["intersection\n7 heads", "all heads\n270 heads"]


def test_patch_points_are_those_of_one_kind_of_rows_that_could_be_given():
    record = {"estimate": 0.5, "low": None, "high": 0.6}
    effect = {"change": record, "random_change": record}
    patch = {
        "positions": "answer_rows",
        "of_set": "retrieval",
        "num_heads": 3,
        "reason": "",
        "null": None,
        "f1": effect,
    }
    null = {**patch, "null": {"f1": {"estimate": 0.1}}}
    others = [{**patch, "positions": "all_positions"}, {**patch, "reason": "there is none"}]
    first, second = figures.patch_points([patch, *others, null], "answer_rows", "f1")
    assert (first.name, first.num_heads, first.change, first.high, first.random_high) == ("retrieval", 3, 0.5, 0.6, 0.6)
    assert math.isnan(first.low)
    assert math.isnan(first.null)
    assert second.null == 0.1
