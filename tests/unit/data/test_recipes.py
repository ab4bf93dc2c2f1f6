"""What the knobs do to the data: wordings, names, chains, contexts, repeats, lengths, positions, budgets."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rhstudy.data.answers import gives_away, leak_forms
from rhstudy.data.budget import budget_facts, check_equal, tolerance
from rhstudy.data.build import Dataset, build_dataset
from rhstudy.data.config import DataConfig
from rhstudy.data.contexts import is_free
from rhstudy.data.insights import WORDINGS, InventedInsights, RewrittenInsights, symbolic_citation
from rhstudy.data.knobs import Knobs
from rhstudy.data.needles import TemplatedFacts, Templates, symbolic_chain
from rhstudy.data.relations import ALL_RELATIONS, INSIGHTS, RELATIONS, chain_relations
from rhstudy.data.rewriting import Plan, rewrite
from rhstudy.errors import InputError
from rhstudy.seeding import generator


class Echo:
    """Words every fact in one way."""

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"model": "echo", "digest": "0"}

    def write(self, chats: Sequence[Sequence[Mapping[str, str]]], seeds: Sequence[int]) -> list[str]:
        return [f"As is told {seed % 3 * 'again and '}again, {chat[-1]['content']}"
                for chat, seed in zip(chats, seeds, strict=True)]  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recorded")
    paths = {task: folder / f"{task}.jsonl" for task in ("mdqa", "musique", "summhay")}
    for task, path in paths.items():
        rewrite(Plan(task=task, num_needles=30), Echo(), path)  # type: ignore[arg-type]
    return paths


@pytest.fixture(scope="module")
def build(config: Callable[..., DataConfig], chat_tokenizer: PreTrainedTokenizerFast, recorded: dict[str, Path]) -> Any:
    def make(num_examples: int = 12, seed: int = 0, num_tokens: int = 512, **knobs: Any) -> Dataset:
        values = {"name": "x", "concept_expression": "templated", **knobs}
        asked = config(
            knobs=Knobs(**values), num_examples=num_examples, seed=seed, num_tokens=num_tokens,
            rewritten_file=str(recorded["mdqa"]),
        )  # fmt: skip
        return build_dataset(asked, chat_tokenizer)

    return make


@pytest.mark.parametrize("relation", ALL_RELATIONS, ids=lambda relation: relation.name)
def test_relations_have_forty_wordings(relation: Any) -> None:
    wordings = relation.wordings
    assert len(set(wordings)) == len(wordings) >= 40
    assert wordings[0] == relation.statement
    assert all(text.count("{subject}") == text.count(" {value}") == 1 and text.endswith(".") for text in wordings)
    assert "{subject}" in relation.noun


def test_insights_have_forty_wordings() -> None:
    assert len(set(WORDINGS)) == len(WORDINGS) >= 40
    assert len({kind.name for kind in INSIGHTS}) == len(INSIGHTS) == 12


def test_templates_are_used_as_asked() -> None:
    plain, diverse = TemplatedFacts(), TemplatedFacts(Templates(origin="templated_diverse", num_templates=42))
    few = TemplatedFacts(Templates(num_templates=3, num_relations=2))
    assert {plain(generator(0, n), "").passage.text.startswith("According") for n in range(200)} == {False}
    facts = [diverse(generator(0, n), "") for n in range(600)]
    assert sum(fact.passage.text.startswith("According to the town chronicle,") for fact in facts) > 50
    patterns = {
        fact.passage.text.replace(fact.passage.title, "S").replace(fact.answer, "V")
        for fact in (few(generator(1, n), "") for n in range(200))
    }
    assert len(patterns) == 6
    assert {fact.labels[0] for fact in facts} == {relation.name for relation in RELATIONS}


def test_overlap_repeats_the_needles_words() -> None:
    facts = [TemplatedFacts(Templates(lexical_overlap=1.0))(generator(0, n), "") for n in range(50)]
    for fact in facts:
        start = fact.passage.text[: fact.answer_span.start]
        assert fact.question.startswith(start)
        assert fact.question.endswith("?")
        assert fact.answer not in fact.question


def test_sources_of_names_differ_and_repeat_themselves() -> None:
    drawn = {}
    for source in ("faker", "faker_world", "nonce"):
        first, second = (TemplatedFacts(Templates(entity_source=source)) for _ in range(2))  # type: ignore[arg-type]
        facts = [first(generator(0, n), "") for n in range(40)]
        assert facts[::-1] == [second(generator(0, n), "") for n in range(39, -1, -1)]
        drawn[source] = {fact.passage.title for fact in facts}
    assert not drawn["faker"] & drawn["faker_world"]
    assert not drawn["faker"] & drawn["nonce"]


def test_answers_come_near_the_length_asked_for() -> None:
    mean = {}
    for words in (1, 4):
        make = TemplatedFacts(Templates(answer_words=words, num_relations=3))
        answers = [make(generator(0, n), "").answer for n in range(90)]
        mean[words] = sum(len(answer.split()) for answer in answers) / len(answers)
    assert mean[1] < 1.8
    assert mean[4] > 2.3
    assert len(symbolic_chain(generator(0), "", 1, 3).answer.split()) == 3


def test_passages_state_facts_of_every_relation_and_wording_and_follow_from_their_stream() -> None:
    make = TemplatedFacts(Templates(num_templates=3, num_relations=4, answer_words=2))
    passages = make.passages(generator(0, "a"), 600)
    assert passages == make.passages(generator(0, "a"), 600)
    assert passages != make.passages(generator(0, "b"), 600)
    wordings = [wording for relation in ALL_RELATIONS[:4] for wording in relation.wordings[:3]]
    escaped = (re.escape(wording) for wording in wordings)
    patterns = [re.compile(text.replace(r"\{subject\}", "(.+)").replace(r"\{value\}", "(.+)")) for text in escaped]
    seen = Counter()
    for passage in passages:
        number = next(number for number, pattern in enumerate(patterns) if pattern.fullmatch(passage.text))
        match = patterns[number].fullmatch(passage.text)
        assert match is not None
        assert match.group(1) == passage.title
        assert not gives_away(passage.title, leak_forms([match.group(2)]))
        seen[number] += 1
    assert len(seen) == len(wordings)
    assert min(seen.values()) > 25  # 50 are expected of each


@pytest.mark.parametrize("num_hops", [2, 3, 4])
def test_chains_lead_from_hop_to_hop(num_hops: int) -> None:
    make = TemplatedFacts(Templates(origin="templated_diverse", num_templates=42))
    for number in range(60):
        fact = make.chain(generator(2, number), "c", num_hops)
        line = symbolic_chain(generator(2, number), "s", num_hops)
        for chain in (fact, line):
            assert len(chain.golds) == num_hops
            for gold, after in zip(chain.golds, chain.golds[1:], strict=False):
                assert gold.answer == after.passage.title
            assert chain.answers == (chain.answer,)
            assert chain.golds[0].passage.title in chain.question
            assert not any(answer in chain.question for answer in (*chain.hop_answers, chain.answer))
        kinds = chain_relations(number, num_hops)
        assert len(set(kinds)) == num_hops
        assert all(a.value == b.subject for a, b in itertools.pairwise(kinds))


def test_insights_are_in_their_gold_documents_alone(recorded: dict[str, Path]) -> None:
    for make in (InventedInsights(42), RewrittenInsights(recorded["summhay"]), symbolic_citation):
        for number in range(30):
            fact, other = make(generator(5, number), "a"), make(generator(6, number), "b")
            assert fact.cites
            assert 2 <= len(fact.golds) <= 4
            assert len({gold.passage.title for gold in fact.golds}) == len(fact.golds)
            if fact.origin == "symbolic":
                key = fact.question.split()[-1].rstrip("?")
                assert all(f"{key} = " in gold.passage.text for gold in fact.golds)
                assert all(f"{key} = " not in gold.passage.text for gold in other.golds)


def test_needle_shares(build: Any) -> None:
    data = build(60, symbolic_share=0.3, rewritten_share=0.3, real_fraction=0.2)
    origins = Counter(example.metadata["origin"] for example in data.parts["train"])
    assert origins["real"] == 12
    assert set(origins) == {"real", "rewritten", "symbolic", "templated"}
    assert all(8 <= origins[kind] <= 24 for kind in ("rewritten", "symbolic", "templated"))


@pytest.mark.parametrize("kind", ["rewritten", "templated_diverse"])
def test_wordings_are_built(build: Any, kind: str) -> None:
    examples = build(8, concept_expression=kind).parts["train"]
    assert {example.metadata["origin"] for example in examples} == {kind}
    for example in examples:
        needle = example.needles[0]
        assert example.prompt[slice(*needle.answer_char_span)] == example.answer.strip()


def test_context_shares(build: Any) -> None:
    examples = build(20, num_tokens=1024, filler_context_share=0.5).parts["train"]
    documents = sum(example.metadata["num_documents"] - 1 for example in examples)
    filler = sum(example.prompt.count("(Title: Filler)") for example in examples)
    assert 0.35 < filler / documents < 0.65


def test_on_topic_context_is_one_passage_again_and_again(build: Any) -> None:
    for example in build(4, context_diversity="repeated_on_topic").parts["train"]:
        titles = [line.split(") ")[0] for line in example.prompt.split("(Title: ")[1:]]
        assert len(set(titles)) == 2


def test_similarity_draws_passages_from_further_down(build: Any) -> None:
    near, far = (build(6, concept_expression="real", distractor_similarity=s).parts["train"] for s in (1.0, 0.0))
    assert [example.prompt for example in near] != [example.prompt for example in far]


@pytest.mark.parametrize("kind", ["templated", "symbolic"])
def test_hard_distractors_look_like_the_needle(build: Any, kind: str) -> None:
    for example in build(4, concept_expression=kind, num_hard_distractors=3, context_diversity="repeated_filler").parts[
        "train"
    ]:
        titles = [line.split(") ")[0] for line in example.prompt.split("(Title: ")[1:]]
        assert len(set(titles) - {"Filler"}) == 4


def test_a_share_of_distinct_facts_is_used_again(build: Any) -> None:
    data = build(12, distinct_share=0.25)
    assert data.card["parts"]["train"]["num_distinct_rows"] == 3
    assert len({example.prompt for example in data.parts["train"]}) == 12


def test_lengths_are_spread_around_the_same_mean(build: Any) -> None:
    lengths = [example.num_prompt_tokens for example in build(20, num_tokens=600, length_spread=0.5).parts["train"]]
    assert min(lengths) < 330
    assert max(lengths) > 870
    assert abs(sum(lengths) / 20 - 592) < 16


def test_positions_follow_their_law(build: Any) -> None:
    examples = build(20, needle_position="end").parts["train"]
    assert all(e.metadata["gold_position"] >= 0.7 * (e.metadata["num_documents"] - 1) for e in examples)


def test_rows_are_kept_by_their_labels(build: Any) -> None:
    with pytest.raises(InputError, match=r"knobs\.row_labels must leave at least one row.*Labels found: none"):
        build(2, concept_expression="real", row_labels=("spouse",))


def test_equal_budgets() -> None:
    part = {"num_examples": 10, "num_prompt_tokens": {"mean": 4090.0}}
    facts = budget_facts(part, 10, 4096)
    assert facts["deviation"] == pytest.approx(-0.001465, abs=1e-6)
    assert tolerance(4096) == 0.01
    assert tolerance(512) == 16 / 512
    must = r"recipe budget must be 10 examples and 40960 tokens within 1\.0%, got <10 examples, 40000 tokens, -2\.3%>"
    with pytest.raises(InputError, match=must):
        budget_facts({**part, "num_prompt_tokens": {"mean": 4000.0}}, 10, 4096)
    with pytest.raises(InputError, match="got <9 examples"):
        budget_facts({**part, "num_examples": 9}, 10, 4096)
    assert check_equal("a", 1009, "real", 1000, 4096) == pytest.approx(0.009)
    with pytest.raises(InputError, match=r"recipe a must train on as many tokens as real \(1000\) within 1\.0%"):
        check_equal("a", 985, "real", 1000, 4096)


def test_look_alikes_never_answer(build: Any) -> None:
    make = TemplatedFacts()
    fact = make(generator(0, "f"), "f")
    similar = [make.similar(fact, generator(1, n)) for n in range(100)]
    assert {one.labels for one in similar} == {fact.labels}
    assert any(is_free(one.passage, fact) for one in similar)
    assert not is_free(fact.passage, fact)


_OTHER_PROCESS = """
import sys
from rhstudy.configs import digest
from rhstudy.data.needles import TemplatedFacts, Templates
from rhstudy.seeding import generator
make = TemplatedFacts(Templates(num_templates=42, entity_source="faker_world"))
print(digest([[f.question, f.passage.text] for f in (make.chain(generator(7, n), "") for n in range(30))]))
"""


def test_facts_are_the_same_in_every_process() -> None:
    found = {
        subprocess.run([sys.executable, "-c", _OTHER_PROCESS], capture_output=True, text=True, check=True,
                       env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1
