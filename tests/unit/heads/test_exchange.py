"""Files of other tools: written and read back, read as those tools do, and refused when broken."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from rhstudy.errors import InputError
from rhstudy.heads import exchange
from rhstudy.heads.compare import compare_facts, head_set_facts, load_any, show_facts
from rhstudy.heads.sets import threshold_set, top_k_set
from rhstudy.types import HeadScores

MEANS = np.array([[0.5, 0.0, 0.125, 0.25], [0.0, 0.75, 0.25, 0.0], [1.5, 0.0, 0.0, 0.0]])
PAIRS = [["0-1", 0.75], ["1-0", 0.5], ["0-0", 0], ["1-1", -0.25]]


def scores_of(*rows: np.ndarray, unscored: tuple[int, ...] = ()) -> HeadScores:
    grid = np.stack(rows)
    names = tuple(f"e{index}" for index in range(len(rows)))
    return HeadScores(
        score=grid,
        aligned=np.full_like(grid, np.nan),
        example_ids=names,
        unscored={names[index]: "why" for index in unscored},
        real_nll=np.full(len(rows), np.nan),
        model="model-x",
        model_digest="m",
        data_digest="d",
        mode="teacher_forced",
        seed=3,
    )


@pytest.fixture
def scores() -> HeadScores:
    """Two scored rows with the mean `MEANS`, and an unscored one."""
    shift = np.where(MEANS > 0, 0.125, 0)
    return scores_of(MEANS + shift, np.full_like(MEANS, np.nan), MEANS - shift, unscored=(1,))


@pytest.fixture
def ragged() -> HeadScores:
    return scores_of(np.array([[0.5, 0.25], [0.5, np.nan]]))


@pytest.fixture
def write(tmp_path):
    def _write(values, name="qr.json"):
        path = tmp_path / name
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return path

    return _write


class TestQrheadList:
    def test_read(self, write):
        scores = exchange.read_qrhead(write(PAIRS))
        np.testing.assert_array_equal(scores.mean(), [[0, 0.75], [0.5, -0.25]])
        assert np.isnan(scores.standard_error()).all()
        assert np.isnan(scores.aligned).all()
        assert (scores.model, scores.mode, scores.seed, scores.num_scored) == ("qr", "qrhead", -1, 1)
        assert scores.data_digest.startswith("qrhead:")

    def test_written_by_falling_score_and_read_back(self, scores, tmp_path):
        exchange.write_qrhead(scores, tmp_path / "out.json")
        pairs = json.loads((tmp_path / "out.json").read_text())
        assert [key for key, _ in pairs][:7] == ["2-0", "1-1", "0-0", "0-3", "1-2", "0-2", "0-1"]
        assert [score for _, score in pairs] == sorted(MEANS.ravel().tolist(), reverse=True)
        again = exchange.read_qrhead(tmp_path / "out.json")
        np.testing.assert_array_equal(again.mean(), MEANS)
        exchange.write_qrhead(again, tmp_path / "out2.json")
        assert (tmp_path / "out.json").read_bytes() == (tmp_path / "out2.json").read_bytes()

    def test_negative_scores_survive(self, write, tmp_path):
        exchange.write_qrhead(exchange.read_qrhead(write(PAIRS)), tmp_path / "out.json")
        assert json.loads((tmp_path / "out.json").read_text()) == PAIRS

    def test_load_any_knows_lists_from_published_objects(self, write):
        assert load_any(write(PAIRS)).mode == "qrhead"
        assert load_any(write({"0-0": [1, 0.5]}, "published.json")).mode == "published"
        with pytest.raises(InputError, match=r"head scores must be valid JSON"):
            load_any(write("[", "broken.json"))

    def test_facts_of_negative_scores_are_null_with_the_reason(self, write):
        scores = load_any(write(PAIRS))
        with pytest.raises(InputError, match="top_k must be at least 1 for scores of mode qrhead, got 0"):
            show_facts(scores)
        shown = show_facts(scores, top_k=2)
        assert shown["num_retrieval_heads"] == 2
        assert shown["top_heads"][0] == {
            "layer": 0,
            "head": 1,
            "mean": 0.75,
            "standard_error": None,
        }
        facts = compare_facts(scores, scores, top_k=2)
        assert facts["weighted_recall"] is None
        assert facts["reasons"]["weighted_recall"] == "it is defined for scores >= 0, and one is negative"
        assert facts["recall"] == facts["average_precision"] == facts["pearson"] == 1
        json.dumps(facts, allow_nan=False)

    @pytest.mark.parametrize(
        ("values", "match"),
        [
            ("{", r"QRHead scores must be valid JSON"),
            ({"0-0": 1}, r"QRHead scores must be a JSON list with at least one pair, got <dict> \(.*qr.json\)"),
            ([], r"QRHead scores must be a JSON list with at least one pair, got <list>"),
            ([["0-0"]], r"QRHead scores must hold pairs \[\"layer-head\", score\], got \['0-0'\]"),
            ([[0, 1]], r"QRHead scores must hold pairs"),
            ([["0-00", 1]], r"QRHead scores key must be \"layer-head\", got '0-00'"),
            ([["0-0", True]], r"QRHead scores 0-0 must be a finite number, got True"),
            ([["0-0", "1"]], r"QRHead scores 0-0 must be a finite number, got '1'"),
            ('[["0-0", NaN]]', r"QRHead scores 0-0 must be a finite number, got nan"),
            ([["0-0", 1], ["0-0", 1]], r"QRHead scores must name each head once, got '0-0'"),
            ([["0-0", 1], ["1-1", 1]], r"must name every head of 2 layers x 2 heads, got <2 of 4 heads>"),
            ([["999999-999999", 1]], r"must name every head of 1000000 layers x 1000000 heads, got <1 of"),
        ],
    )
    def test_malformed(self, write, values, match):
        with pytest.raises(InputError, match=match):
            exchange.read_qrhead(write(values))

    def test_missing(self, tmp_path):
        with pytest.raises(InputError, match="QRHead scores must be an existing file"):
            exchange.read_qrhead(tmp_path / "none.json")


class TestQrheadSet:
    def test_written_and_read_back(self, scores, tmp_path):
        heads = top_k_set(scores, 3)
        exchange.write_head_set(heads, tmp_path / "set.txt")
        text = (tmp_path / "set.txt").read_text()
        assert text == "0-0,1-1,2-0\n"
        assert [tuple(map(int, head.split("-"))) for head in text.split(",")] == [(0, 0), (1, 1), (2, 0)]  # as QRHead
        for given in (str(tmp_path / "set.txt"), text.strip()):
            again = exchange.read_head_set(given, scores)
            assert again.heads == heads.heads
            assert again.heads_per_layer == heads.heads_per_layer

    def test_a_config_of_qrhead_is_read(self, scores, write):
        config = '# Default\n\nattn_head_set: "2-0,0-3" # top2\nmodel_base_class: "Llama"\n'
        found = exchange.read_head_set(str(write(config, "qr.yaml")), scores)
        assert found.ordered() == [(0, 3), (2, 0)]
        assert found.rule == "named by qr.yaml"

    def test_a_list_longer_than_a_file_name_is_a_list(self):
        every = ",".join(f"{layer}-{head}" for layer in range(16) for head in range(32))
        assert len(exchange.read_head_set(every, scores_of(np.ones((16, 32))))) == 512

    def test_facts_take_the_set_as_the_reference(self, scores):
        facts = head_set_facts(scores, "2-0,0-1", threshold=0.5)["head_set"]
        assert (facts["num_heads"], facts["recall"], facts["precision"]) == (2, 0.5, pytest.approx(1 / 3))
        assert facts["average_precision"] == pytest.approx((1 + 2 / 12) / 2)

    @pytest.mark.parametrize(
        ("given", "match"),
        [
            ("", r"QRHead head set must be a list of heads, got ''"),
            ("0-0,", r"QRHead head set key must be \"layer-head\", got ''"),
            ("no.yaml", r"must be heads as \"8-21,8-14\", or a readable text or YAML file, got 'no.yaml'. Reading f"),
            ("0-0,1-0,0-0", r"QRHead head set must name each head once, got \['0-0'\]"),
            ("0-0,3-0,1-4", r"must name heads of the model's 3 layers x 4 heads, got \['3-0', '1-4'\]"),
        ],
    )
    def test_malformed(self, scores, given, match):
        with pytest.raises(InputError, match=match):
            exchange.read_head_set(given, scores)

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("a: b: c", r"or a readable text or YAML file, got '.*qr.yaml'. Reading failed"),
            ('attn_head_set: "full_heads"', r"QRHead head set must be a list of heads, got 'full_heads' \(.*qr.yaml"),
            ("model_base_class: x", r"QRHead head set must be a string, got <NoneType> \(.*qr.yaml\)"),
            ("attn_head_set: [0-0]", r"QRHead head set must be a string, got <list>"),
        ],
    )
    def test_malformed_file(self, scores, write, text, match):
        with pytest.raises(InputError, match=match):
            exchange.read_head_set(str(write(text, "qr.yaml")), scores)

    def test_an_empty_set_is_refused(self, scores, tmp_path):
        quiet = dataclasses.replace(scores, score=np.zeros_like(scores.score), unscored={})
        with pytest.raises(InputError, match=r"must name at least one head, got <none with mean score >= 0.1>"):
            exchange.write_head_set(threshold_set(quiet), tmp_path / "set.txt")


def full_heads(folder, sparsity):
    """Which kv heads DuoAttention would give the full cache, by its own steps; its tie-breaking noise left out."""
    values = np.clip(np.loadtxt(folder / "full_attention_heads.tsv", dtype=float, delimiter="\t"), 0, 1)
    return values >= np.quantile(values, sparsity)


class TestDuoAttention:
    def test_a_kv_head_has_the_highest_score_of_its_query_heads(self, scores, tmp_path):
        returned = exchange.write_duoattention(scores, tmp_path / "new" / "pattern", num_kv_heads=2)
        values = np.loadtxt(tmp_path / "new" / "pattern" / "full_attention_heads.tsv", dtype=float, delimiter="\t")
        np.testing.assert_array_equal(values, [[0.5, 0.25], [0.75, 0.25], [1.5, 0]])
        np.testing.assert_array_equal(values, returned)
        config = json.loads((tmp_path / "new" / "pattern" / "config.json").read_text())
        assert config == {"sink_size": 128, "recent_size": 256}

    def test_without_grouping_every_head_stands_for_itself(self, scores, tmp_path):
        np.testing.assert_array_equal(exchange.write_duoattention(scores, tmp_path, num_kv_heads=4), MEANS)

    def test_sparsity_takes_the_lowest_share(self, scores, tmp_path):
        exchange.write_duoattention(scores, tmp_path, num_kv_heads=2, sink_size=4, recent_size=8)
        np.testing.assert_array_equal(full_heads(tmp_path, 0.5), [[True, False], [True, False], [True, False]])
        assert json.loads((tmp_path / "config.json").read_text()) == {"sink_size": 4, "recent_size": 8}

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"num_kv_heads": 3}, r"num_kv_heads must divide the 4 query heads of a layer, got 3. It is num_key_value"),
            ({"num_kv_heads": 0}, r"num_kv_heads must divide the 4 query heads of a layer, got 0"),
            ({"num_kv_heads": 8}, r"num_kv_heads must divide the 4 query heads of a layer, got 8"),
            ({"num_kv_heads": 2, "sink_size": 0}, r"sink_size must be at least 1, got 0. Released patterns have 128"),
            ({"num_kv_heads": 2, "recent_size": -1}, r"recent_size must be at least 1, got -1"),
        ],
    )
    def test_bad_arguments(self, scores, tmp_path, arguments, match):
        with pytest.raises(InputError, match=match):
            exchange.write_duoattention(scores, tmp_path / "pattern", **arguments)
        assert not (tmp_path / "pattern").exists()

    def test_scores_without_order_are_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"DuoAttention pattern must have a score above 0, got 0.0 \(model-x\)"):
            exchange.write_duoattention(scores_of(np.zeros((2, 2))), tmp_path, num_kv_heads=1)


def headkv_shares(path, num_layers, num_heads):
    """The share of the budget of each head, by HeadKV's own steps (temperature 1)."""
    with path.open() as file:
        head_list = json.loads(file.readline())
    means = [np.mean(item[1]) for item in head_list.items()]
    return (np.array(means) / sum(means)).reshape(num_layers, num_heads)


class TestHeadkv:
    def test_read_as_headkv_does_it_gives_the_means(self, scores, tmp_path):
        exchange.write_headkv(scores, tmp_path / "out.json")
        np.testing.assert_allclose(headkv_shares(tmp_path / "out.json", 3, 4), MEANS / MEANS.sum(), rtol=1e-12)
        np.testing.assert_array_equal(load_any(tmp_path / "out.json").mean(), MEANS)

    def test_keys_are_in_order_beyond_ten_layers_and_heads(self, tmp_path):
        means = np.arange(1, 12 * 11 + 1).reshape(12, 11) / 1000
        exchange.write_headkv(scores_of(means), tmp_path / "out.json")
        np.testing.assert_allclose(headkv_shares(tmp_path / "out.json", 12, 11), means / means.sum(), rtol=1e-12)

    @pytest.mark.parametrize(
        ("means", "match"),
        [
            ([[0.0, 0.0]], r"HeadKV scores must have a sum above 0, got 0.0 \(model-x\). HeadKV divides by it"),
            ([[0.5, -0.25]], r"HeadKV scores must be >= 0, got -0.25 \(model-x\). HeadKV raises them to a power"),
        ],
    )
    def test_what_headkv_cannot_divide_or_raise_is_refused(self, tmp_path, means, match):
        with pytest.raises(InputError, match=match):
            exchange.write_headkv(scores_of(np.array(means)), tmp_path / "out.json")
        assert not (tmp_path / "out.json").exists()


WRITERS = {
    "QRHead scores": exchange.write_qrhead,
    "HeadKV scores": exchange.write_headkv,
    "DuoAttention pattern": lambda scores, path: exchange.write_duoattention(scores, path, num_kv_heads=1),
}


@pytest.mark.parametrize("name", WRITERS)
def test_layers_of_different_width_and_unscored_models_are_refused(name, ragged, tmp_path):
    with pytest.raises(InputError, match=rf"{name} must have as many heads in every layer, got \[2, 1\] \(model-x\)"):
        WRITERS[name](ragged, tmp_path / "out")
    nothing = scores_of(np.full((2, 2), np.nan), unscored=(0,))
    with pytest.raises(InputError, match=rf"{name} must have at least one scored example, got <1 examples, all unsco"):
        WRITERS[name](nothing, tmp_path / "out")
    assert not (tmp_path / "out").exists()
