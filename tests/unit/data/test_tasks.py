"""MuSiQue, 2WikiMultihopQA, HotpotQA, SummHay Citation and a user's own rows, from file or hub folder to prompts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from task_worlds import (
    chain,
    distractors,
    hotpot_row,
    musique_row,
    own_row,
    topic,
    two_wiki_row,
    write_passages,
    write_rows,
)

from rhstudy.data.answers import gives_away, leak_forms
from rhstudy.data.build import Build, Dataset, build_dataset
from rhstudy.data.config import DataConfig
from rhstudy.data.encode import Encoder
from rhstudy.data.facts import Fact, Passage
from rhstudy.data.leaks import check_leaks, leaking_passages
from rhstudy.data.rows import read_source
from rhstudy.data.tasks import musique, summhay
from rhstudy.data.tasks.registry import TaskName, task_named
from rhstudy.errors import InputError, StudyError
from rhstudy.types import Example

NUM_ROWS = 24
PARTS = ("train", "score", "dev", "eval")
ROWS: dict[str, tuple[TaskName, Callable[[int], dict[str, Any]]]] = {
    "musique": ("musique", musique_row),
    "hotpotqa": ("musique", hotpot_row),
    "hotpotqa on the hub": ("musique", lambda number: hotpot_row(number, columns=True)),
    "two_wiki_multihop": ("musique", two_wiki_row),
    "own": ("own", own_row),
    "own, several hops": ("musique", own_row),
}


def config_of(layout: str, folder: Path, **changes: Any) -> DataConfig:
    task, make = ROWS[layout]
    given: dict[str, Any] = {"parts": PARTS, "num_tokens": 1400, "num_examples": 6, "num_score": 2, "num_eval": 3}
    return DataConfig(
        task=task,
        train_file=write_rows(folder / "rows.jsonl", [make(number) for number in range(NUM_ROWS)]),
        passages_file=write_passages(folder / "passages.jsonl"),
        **{**given, **changes},
    )


def topics_config(folder: Path, **changes: Any) -> DataConfig:
    for number in range(4):
        (folder / "topics").mkdir(parents=True, exist_ok=True)
        (folder / "topics" / f"news{number}.json").write_text(json.dumps(topic(number)), encoding="utf-8")
    given: dict[str, Any] = {"parts": PARTS, "num_tokens": 3000, "num_examples": 6}
    return DataConfig(task="summhay", train_file=str(folder / "topics"), **{**given, **changes})


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Any) -> Dataset:
    return build_dataset(topics_config(tmp_path_factory.mktemp("topics")), chat_tokenizer)


@pytest.mark.parametrize("layout", ROWS)
def test_every_layout_gives_needles_of_every_hop(layout: str, tmp_path: Path, chat_tokenizer: Any) -> None:
    data = build_dataset(config_of(layout, tmp_path), chat_tokenizer)
    for part in PARTS:
        for example in data.parts[part]:
            known = next(known for known in map(chain, range(NUM_ROWS)) if known["question"] == example.question)
            town, founder = (needle for needle in example.needles)
            assert example.prompt[slice(*town.answer_char_span)] == known["town"]
            assert example.prompt[slice(*founder.answer_char_span)] == known["founder"]
            assert example.answer == f" {known['founder']}"
            assert example.prompt.count(known["founder"]) == 1
            assert known["person_text"] in example.prompt
            spelled = chat_tokenizer.decode(example.prompt_ids[slice(*founder.token_span)])
            assert known["town_text"] in spelled
            assert sum(title in example.prompt for title, _ in distractors(NUM_ROWS, 3)) == 0
    assert {example.metadata["fact_id"] for example in data.parts["eval"]}.isdisjoint(
        example.metadata["fact_id"] for part in PARTS[:3] for example in data.parts[part]
    )


@pytest.mark.parametrize("tokenizer", ["chat_tokenizer", "plain_tokenizer", "unigram_tokenizer"])
def test_own_paragraphs_come_first_and_padding_fills_up(
    tokenizer: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = config_of("musique", tmp_path, parts=("eval",), num_tokens=1000)
    examples = build_dataset(config, request.getfixturevalue(tokenizer)).parts["eval"]
    for example in examples:
        number = int(example.metadata["fact_id"].removeprefix("2hop__"))
        own = [row["paragraph_text"] for row in musique_row(number)["paragraphs"]]
        assert all(text in example.prompt for text in own)
        assert "The fair of" in example.prompt
        assert len(example.metadata["own_documents"]) == 6


def test_positions_of_hops_are_independent_and_every_order_comes(tmp_path: Path, chat_tokenizer: Any) -> None:
    examples = build_dataset(config_of("musique", tmp_path, num_examples=40, parts=("train",)), chat_tokenizer)
    places = [tuple(example.metadata["gold_positions"]) for example in examples.parts["train"]]
    assert {first < second for first, second in places} == {True, False}


def test_rows_used_again_get_other_padding(tmp_path: Path, chat_tokenizer: Any) -> None:
    config = config_of("musique", tmp_path, num_examples=40, parts=("train",))
    built = build_dataset(config, chat_tokenizer)
    seen: dict[str, set[str]] = {}
    for example in built.parts["train"]:
        titles = {piece.split(")")[0] for piece in example.prompt.split("(Title: Fair ")[1:]}
        seen.setdefault(example.metadata["fact_id"], set()).add(" ".join(sorted(titles)))
    assert built.card["parts"]["train"]["num_distinct_rows"] == len(seen) < 40
    assert all(len(kinds) > 1 for kinds in seen.values())


def planted(example: Example, text: str) -> Example:
    start, end = example.metadata["haystack_char_span"]
    metadata = {**example.metadata, "haystack_char_span": [start, end + len(text)]}
    return dataclasses.replace(example, prompt=example.prompt[:end] + text + example.prompt[end:], metadata=metadata)


@pytest.fixture(scope="module")
def hops(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Any) -> Example:
    config = config_of("musique", tmp_path_factory.mktemp("hops"), parts=("eval",), num_eval=1)
    return build_dataset(config, chat_tokenizer).parts["eval"][0]


@pytest.mark.parametrize("leak", ["founder", "town", "title"])
def test_planted_leaks_of_any_hop_are_found(hops: Example, leak: str) -> None:
    known = next(known for known in map(chain, range(NUM_ROWS)) if known["question"] == hops.question)
    text = {
        "founder": f"\n\nDocument [99](Title: Other) It was {known['founder'].upper()}.",
        "town": f"\n\nDocument [99](Title: Other) Somebody came from {known['town']}.",
        "title": f"\n\nDocument [99](Title: {known['person'].lower()}) Nothing.",
    }
    assert leaking_passages(hops) == []
    assert len(leaking_passages(planted(hops, text[leak]))) == 1
    with pytest.raises(StudyError, match="haystack must hold no gold answer"):
        check_leaks([planted(hops, text[leak])])


def test_own_paragraphs_may_name_an_intermediate_answer_but_not_the_final_one(hops: Example) -> None:
    known = next(known for known in map(chain, range(NUM_ROWS)) if known["question"] == hops.question)
    own = {**hops.metadata, "own_documents": [*hops.metadata["own_documents"], 99]}
    for key, count in (("town", 0), ("founder", 1)):
        text = f"\n\nDocument [99](Title: Other) On {known[key]}."
        assert len(leaking_passages(planted(dataclasses.replace(hops, metadata=own), text))) == count


def test_own_distractors_that_leak_are_left_out_and_counted(tmp_path: Path) -> None:
    row = musique_row(1)
    known = chain(1)
    row["paragraphs"][0]["paragraph_text"] = f"They say {known['founder']} did it."
    row["paragraphs"][5]["title"] = known["town"].upper()
    row["paragraphs"][6]["paragraph_text"] = f"{known['town_text']} Copied."
    (fact,) = musique.read_facts(
        read_source(write_rows(tmp_path / "a.jsonl", [row]), "data.f"), "data.f", "error"
    ).facts
    assert fact.num_left_out == 3
    assert len(fact.given) == 3
    assert fact.labels == ("place of birth", "founder")


def test_a_passage_of_two_hops_is_one_needle(tmp_path: Path) -> None:
    row = musique_row(1)
    row["question_decomposition"][0]["paragraph_support_idx"] = 3
    (fact,) = musique.read_facts(
        read_source(write_rows(tmp_path / "a.jsonl", [row]), "data.f"), "data.f", "error"
    ).facts
    assert len(fact.golds) == 1
    assert fact.hop_answers == (chain(1)["town"],)


def hub_folder(folder: Path, splits: dict[str, Sequence[Any]]) -> str:
    """A local folder in hub layout: a file a split."""
    for split, rows in splits.items():
        write_rows(folder / "data" / f"{split}.jsonl", rows)
    return str(folder)


@pytest.mark.parametrize("layout", ["musique", "hotpotqa on the hub", "two_wiki_multihop", "own"])
def test_hub_layouts_are_read_through_datasets(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    task, make = ROWS[layout]
    rows = [make(number) for number in range(NUM_ROWS)]
    name = hub_folder(tmp_path / "hub", {"train": rows[:20], "validation": rows[20:]})
    local = read_source(write_rows(tmp_path / "rows.jsonl", rows[20:]), "data.f")
    hub = read_source(f"hub:{name}@validation", "data.f")
    found, same = (task_named(task).read_facts(source, "data.f", "error").facts for source in (hub, local))
    assert [strip(fact) for fact in found] == [strip(fact) for fact in same]
    with pytest.raises(InputError, match="name one of the splits train, validation"):
        read_source(f"hub:{name}", "data.f")


def test_summhay_is_read_from_the_hub_layout_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [topic(number) for number in range(3)]
    for row in rows:
        for document in row["documents"]:
            document["document_text"] = document.pop("text")
    name = hub_folder(tmp_path / "hub", {"train": rows})
    found = summhay.read_facts(read_source(f"hub:{name}@train", "data.f"), "data.f", "error")
    same = summhay.read_facts(read_source(write_rows(tmp_path / "t.jsonl", rows), "data.f"), "data.f", "error")
    assert [strip(fact) for fact in found.facts] == [strip(fact) for fact in same.facts]


def strip(fact: Fact) -> Fact:
    return dataclasses.replace(fact, where="")


def test_citing_prompts_keep_every_gold_document_and_answer_with_their_numbers(topics: Dataset) -> None:
    rows = {
        item["insight_id"]: row for row in map(topic, range(4)) for sub in row["subtopics"] for item in sub["insights"]
    }
    for example in (example for part in topics.parts.values() for example in part):
        cluster = example.metadata["cluster"]
        numbers = sorted(int(example.prompt[slice(*needle.answer_char_span)]) for needle in example.needles)
        assert example.answer == " " + ", ".join(f"[{number}]" for number in numbers)
        assert len(numbers) == len(set(numbers)) == 3
        assert 4 * len(numbers) <= example.metadata["num_documents"]
        for needle in example.needles:
            body = example.prompt[slice(*needle.char_span)]
            assert body.split("]: ", 1)[1] in " ".join(" ".join(
                item["text"].split()) for item in rows[cluster]["documents"] if cluster in item["insights_included"]
            )  # fmt: skip
            assert needle.body_token_span is not None
            assert needle.token_span.start < needle.body_token_span.start


def test_citing_rows_are_cut_by_topic_and_clustered_by_insight(topics: Dataset) -> None:
    owners = {part: {item.metadata["cluster"][:2] for item in built} for part, built in topics.parts.items()}
    assert sorted(map(len, owners.values())) == [1, 1, 1, 1]
    assert len(set().union(*owners.values())) == 4
    card = topics.card["parts"]["eval"]
    assert card["num_examples"] == summhay.NUM_SUB_HAYSTACKS * card["num_clusters"]
    prompts = [example.prompt for example in topics.parts["eval"]]
    assert len(set(prompts)) == len(prompts)


def test_insights_that_too_many_documents_hold_are_left_out_and_counted(topics: Dataset, tmp_path: Path) -> None:
    (rejected,) = topics.card["rejected_rows"].values()
    assert set(rejected) == {f"t{number}-i5" for number in range(4)}
    assert "at most a quarter of its topic's documents, got <20 of 40>" in rejected["t0-i5"]
    nobody = topic(0)
    for document in nobody["documents"]:
        document["insights_included"] = [name for name in document["insights_included"] if name != "t0-i0"]
    source = read_source(write_rows(tmp_path / "t.jsonl", [nobody]), "data.f")
    found = summhay.read_facts(source, "data.f", "error")
    assert "be held by a document" in found.rejected["t0-i0"]


def test_a_planted_insight_is_a_leak(topics: Dataset) -> None:
    example = topics.parts["eval"][0]
    insight = example.question.split("Insight: ")[1]
    assert leaking_passages(example) == []
    assert len(leaking_passages(planted(example, f"\n\nDocument [99]: Some say: {insight}"))) == 1


def test_short_prompts_cut_documents_to_what_is_nearest_to_the_insight(chat_tokenizer: Any) -> None:
    encoder = Encoder(chat_tokenizer)
    sentences = [f"Sentence {number} is about nothing at all." for number in range(30)]
    sentences[20] = "The bank of Velm lost eleven boats."
    passage = Passage("d", " ".join(sentences))
    words = frozenset(["which", "bank", "lost", "eleven", "boats"])
    cut = summhay.excerpt(passage, words, 60, encoder)
    assert sentences[20] in cut.text
    assert cut.text in passage.text
    assert encoder.count(cut.text) <= 66
    assert summhay.excerpt(passage, words, 10_000, encoder) is passage
    giant = Passage("d", "x" * 400)
    assert 0 < len(summhay.excerpt(giant, words, 40, encoder).text) < 400


def test_too_short_prompts_say_how_long_they_must_be(tmp_path: Path, chat_tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"data\.num_tokens must be at least 896 for 24 documents, got 600"):
        build_dataset(topics_config(tmp_path, num_tokens=600), chat_tokenizer)


def test_cut_gold_documents_are_counted(tmp_path: Path, chat_tokenizer: Any) -> None:
    short = build_dataset(topics_config(tmp_path, num_tokens=1500, parts=("eval",)), chat_tokenizer)
    assert short.card["parts"]["eval"]["num_gold_excerpts"] > 0


def test_padding_beyond_the_topic_comes_from_elsewhere_and_never_from_it(tmp_path: Path, chat_tokenizer: Any) -> None:
    config = topics_config(tmp_path, num_tokens=12_000, parts=("eval",), num_eval=2)
    for example in build_dataset(config, chat_tokenizer).parts["eval"]:
        assert example.metadata["num_documents"] > 40
        insight = example.question.split("Insight: ")[1]
        assert not gives_away(example.prompt[: example.prompt.rindex("Question:")], leak_forms([insight]))


def test_the_card_streams_what_the_whole_has(tmp_path: Path, chat_tokenizer: Any) -> None:
    config = config_of("musique", tmp_path)
    whole = build_dataset(config, chat_tokenizer)
    build = Build(config, chat_tokenizer)
    for part in PARTS:
        assert [example.example_id for example in build.examples(part)] == [
            example.example_id for example in whole.parts[part]
        ]
    assert build.card() == whole.card
    assert whole.card["parts"]["train"]["num_by_needles"] == {"2": 6}
