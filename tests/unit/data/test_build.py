from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rhstudy.data.answers import leak_text
from rhstudy.data.build import DataConfig, build_dataset
from rhstudy.data.card import answer_token_shares, check_answer_share, summary_of
from rhstudy.data.corpus import load_corpus, source_digests
from rhstudy.data.examples_file import write_examples
from rhstudy.data.knobs import PRESETS, Knobs
from rhstudy.data.splits import PARTS
from rhstudy.errors import InputError
from rhstudy.types import Example

Make = Callable[..., DataConfig]
ALL = ("train", "score", "dev", "eval")


@pytest.mark.parametrize("context", ["real", "repeated_filler", "templated"])
@pytest.mark.parametrize("concept", ["real", "templated", "symbolic"])
def test_every_corner_builds_to_the_same_budget(
    config: Make, chat_tokenizer: PreTrainedTokenizerFast, concept: str, context: str
) -> None:
    knobs = Knobs(name="corner", concept_expression=concept, context_diversity=context)
    dataset = build_dataset(config(knobs=knobs, num_tokens=640), chat_tokenizer)
    examples = dataset.parts["train"]
    assert len(examples) == 6
    assert {example.recipe for example in examples} == {"corner"}
    assert all(624 <= len(example.prompt_ids) <= 640 for example in examples)
    assert all(example.prompt.endswith("<|im_start|>assistant\nAnswer:") for example in examples)
    assert ("Document [1]" in examples[0].prompt) is not (concept == "symbolic" and context == "templated")
    card = dataset.card["parts"]["train"]
    assert card["share_answer_in_needle"] == 1.0
    assert card["num_by_origin"] == {concept: 6}
    json.dumps(dataset.card, allow_nan=False)


def test_held_out_parts_ignore_the_recipe_and_the_seed(config: Make, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    held = ("score", "dev", "eval")
    first = build_dataset(config(parts=held), chat_tokenizer).parts
    second = build_dataset(config(parts=held, recipe="symbolic", seed=7), chat_tokenizer).parts
    other = build_dataset(config(parts=held, split_seed=1), chat_tokenizer).parts
    assert first == second
    assert first["score"] != other["score"]
    assert {example.recipe for part in first.values() for example in part} == {"real"}
    assert [example.example_id for example in first["eval"]] == [
        f"eval-{ex.metadata['fact_id']}" for ex in first["eval"]
    ]
    few = build_dataset(config(parts=("eval",), num_eval=3), chat_tokenizer).parts["eval"]
    assert few == first["eval"][:3]


def test_train_follows_the_seed(config: Make, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    first, again, other = (build_dataset(config(seed=seed), chat_tokenizer).parts["train"] for seed in (0, 0, 1))
    assert first == again
    assert [ex.metadata["fact_id"] for ex in first] != [ex.metadata["fact_id"] for ex in other]


def titles_shown(example: Example) -> set[str]:
    lines = example.prompt.split("\n")
    return {leak_text(line.split("(Title: ")[1].split(") ")[0]) for line in lines if line.startswith("Document [")}


@pytest.mark.parametrize("passages_file", [None, ""])
def test_train_prompts_show_no_held_out_passage_or_title(
    config: Make, chat_tokenizer: PreTrainedTokenizerFast, passages_file: str | None
) -> None:
    changes = {} if passages_file is None else {"passages_file": ""}
    settings = config(num_examples=12, num_tokens=700, **changes)
    splits = load_corpus(settings).splits
    held = {leak_text(fact.passage.title) for name in PARTS[1:] for fact in splits.parts[name]}
    texts = [fact.passage.text for name in PARTS[1:] for fact in splits.parts[name]]
    for example in build_dataset(settings, chat_tokenizer).parts["train"]:
        assert titles_shown(example).isdisjoint(held)
        assert not any(text[:40] in example.prompt for text in texts)


def test_rows_are_used_again_only_when_all_were_used(config: Make, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    num_rows = len(load_corpus(config()).splits.parts["train"])
    dataset = build_dataset(config(num_examples=num_rows + 5), chat_tokenizer)
    used = [example.metadata["fact_id"] for example in dataset.parts["train"]]
    assert len(set(used[:num_rows])) == num_rows == dataset.card["parts"]["train"]["num_distinct_rows"]
    assert len({example.example_id for example in dataset.parts["train"]}) == num_rows + 5
    assert len({example.prompt for example in dataset.parts["train"]}) == num_rows + 5


def test_real_limited_keeps_its_questions(config: Make, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    examples = build_dataset(config(recipe="real_limited", num_examples=10), chat_tokenizer).parts["train"]
    assert all(example.question.startswith("who ") for example in examples)
    none = Knobs(name="none", question_words=("whence",))
    with pytest.raises(InputError, match=r"knobs\.question_words must leave at least one row, got \('whence',\)"):
        build_dataset(config(knobs=none), chat_tokenizer)


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.25, 3), (0.5, 6), (1.0, 12)])
def test_real_fraction(config: Make, chat_tokenizer: PreTrainedTokenizerFast, fraction: float, count: int) -> None:
    knobs = Knobs(name="mix", concept_expression="symbolic", context_diversity="templated", real_fraction=fraction)
    examples = build_dataset(config(knobs=knobs, num_examples=12), chat_tokenizer).parts["train"]
    real = [example.metadata["fact_id"] for example in examples if example.metadata["origin"] == "real"]
    assert len(real) == count
    all_real = build_dataset(config(num_examples=12), chat_tokenizer).parts["train"]
    assert real == [example.metadata["fact_id"] for example in all_real][:count]


def test_plain_tokenizers_get_plain_prompts(config: Make, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    example = build_dataset(config(num_examples=1), plain_tokenizer).parts["train"][0]
    assert example.prompt.startswith("Write a short answer")
    assert example.prompt.endswith("\nAnswer:")


@pytest.mark.parametrize("recipe", ["real", "symbolic"])
def test_sentencepiece_like_tokenizers(config: Make, unigram_tokenizer: PreTrainedTokenizerFast, recipe: str) -> None:
    for example in build_dataset(config(recipe=recipe), unigram_tokenizer).parts["train"]:
        needle = example.needles[0]
        assert example.prompt_ids[0] == 1
        assert 496 <= len(example.prompt_ids) <= 512
        shown = example.prompt[slice(*needle.char_span)]
        assert shown in unigram_tokenizer.decode(example.prompt_ids[slice(*needle.token_span)])
        assert example.prompt_ids[slice(*needle.answer_token_span)] == example.answer_ids
        whole = unigram_tokenizer(example.prompt + example.answer)["input_ids"]
        assert whole == [*example.prompt_ids, *example.answer_ids]


def test_reserved_tokens_shorten_the_prompt(config: Make, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    examples = build_dataset(config(num_reserved_tokens=40), chat_tokenizer).parts["train"]
    assert all(456 <= len(example.prompt_ids) <= 472 for example in examples)


def test_rows_that_cannot_be_built_end_the_build_or_are_counted(
    config: Make, chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, world: dict[str, str]
) -> None:
    lines = Path(world["eval_file"]).read_text().splitlines()
    row = json.loads(lines[0])
    row["gold_text"] += " filler words" * 300
    (tmp_path / "eval.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]))
    settings = {"eval_file": str(tmp_path / "eval.jsonl"), "parts": ("eval",)}
    with pytest.raises(InputError, match=rf"data\.num_tokens must be longer than the needle, .*row {row['id']}"):
        build_dataset(config(**settings), chat_tokenizer)
    dataset = build_dataset(config(**settings, on_bad_row="skip"), chat_tokenizer)
    assert len(dataset.parts["eval"]) == len(lines) - 1
    assert list(dataset.card["dropped_rows"]["eval"]) == [row["id"]]
    with pytest.raises(
        InputError,
        match=r"data\.num_eval must be at most the rows of part eval, got <12, with 11 rows built and 1 dropped>\. "
        r"Lower it, or 0 for all rows; why the first was dropped: data\.num_tokens must be longer than the needle",
    ):
        build_dataset(config(**settings, on_bad_row="skip", num_eval=12), chat_tokenizer)


def test_a_recipe_no_row_fits_ends(config: Make, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        InputError, match=r"data\.num_examples must be at most the rows of part train, got <6, with 0 rows built"
    ):
        build_dataset(config(num_tokens=90, on_bad_row="skip"), chat_tokenizer)


def test_a_low_share_of_answer_tokens_fails(config: Make, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    import dataclasses

    example = build_dataset(config(num_examples=1), chat_tokenizer).parts["train"][0]
    strange = dataclasses.replace(example, answer_ids=(0, *example.answer_ids[:1]))
    assert answer_token_shares([summary_of(strange), summary_of(example)])["first_answer_token_in_needle"] == 0.5
    nothing = dataclasses.replace(example, answer_ids=(0, 1))
    assert answer_token_shares([summary_of(nothing), summary_of(example)])["no_answer_token_in_needle"] == 0.5
    with pytest.raises(InputError, match=r"answer tokens in needle must be at least 0\.9, got 0\.5 \(part eval\)"):
        check_answer_share("eval", [summary_of(strange)], 0.9)


def test_card_counts(config: Make, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    card = build_dataset(config(parts=ALL, recipe="symbolic"), chat_tokenizer).card
    assert card["recipe"]["digest"] == PRESETS["symbolic"].digest
    assert card["recipe"]["contains_real"] is False
    assert set(card["sources"]) == {"train_file", "eval_file", "passages_file"}
    assert {key: value["sha256"] for key, value in card["sources"].items()} == source_digests(config())
    assert card["num_rows_in_split"] == {"train": 26, "score": 6, "dev": 4, "eval": 12}
    assert card["parts"]["eval"]["num_examples"] == 12
    assert sum(card["parts"]["eval"]["needle_position_tenths"]) == 12
    assert card["versions"]["Faker"]
    assert card["versions"]["bm25s"]
    assert "not by Contriever" in card["notes"][0]
    train = card["parts"]["train"]
    assert train["num_tokens_total"] > 6 * train["num_prompt_tokens"]["min"]


def test_progress_is_told(config: Make, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    seen: list[tuple[str, int, int]] = []
    build_dataset(config(parts=("train", "dev"), num_examples=2), chat_tokenizer, lambda *step: seen.append(step))
    assert seen == [("train", 1, 2), ("train", 2, 2), *(("dev", number, 4) for number in range(1, 5))]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"recipe": "reel"}, r"data\.recipe must be a known recipe, got 'reel'\. Did you mean real\?"),
        ({"recipe": "real", "knobs": Knobs(name="x")}, r"data\.recipe must be empty when data\.knobs is given"),
        ({"train_file": ""}, r"data\.train_file must be given"),
        ({"num_tokens": 10}, r"data\.num_tokens must be at least 64, got 10"),
        ({"num_examples": 0}, r"data\.num_examples must be at least 1"),
        ({"num_reserved_tokens": -1}, r"data\.num_reserved_tokens must be at least 0"),
        ({"num_eval": -1}, r"data\.num_eval must be 0 or more"),
        ({"seed": -1}, r"data\.seed must be 0 or more"),
        ({"parts": ()}, r"data\.parts must name some of train, score, dev, eval, got \(\)"),
        ({"parts": ("train", "train")}, r"data\.parts must name some of"),
        ({"min_answer_in_needle_share": 2.0}, r"data\.min_answer_in_needle_share must be in \[0, 1\]"),
    ],
)
def test_config_conditions(config: Make, changes: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        config(**changes)


def test_missing_sources_are_named(config: Make, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    for key in ("train_file", "eval_file", "passages_file"):
        with pytest.raises(InputError, match=rf"data\.{key} must be an existing file, got 'none\.jsonl'"):
            build_dataset(config(**{key: "none.jsonl"}), chat_tokenizer)


@pytest.mark.real_data
def test_public_rows_build(data_root: Path, chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    config = DataConfig(
        train_file=str(data_root / "mdqa" / "train.jsonl"),
        eval_file=str(data_root / "mdqa" / "eval.jsonl"),
        passages_file=str(data_root / "wikipedia_passages" / "passages.jsonl"),
        parts=ALL,
        num_tokens=1500,
        num_examples=12,
        num_score=12,
        num_dev=12,
        num_eval=20,
    )
    dataset = build_dataset(config, chat_tokenizer)
    assert dataset.card["num_rows_in_split"] == {"train": 1353, "score": 271, "dev": 181, "eval": 400}
    for name, part in dataset.card["parts"].items():
        assert part["share_answer_in_needle"] > 0.97, name
        assert part["num_prompt_tokens"]["min"] >= 1484
        assert part["num_prompt_tokens"]["max"] <= 1500
    write_examples(tmp_path / "x.jsonl", dataset.parts["eval"])
    assert (tmp_path / "x.jsonl").stat().st_size > 50_000
