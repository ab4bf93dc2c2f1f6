"""Mode `published_code` gives the numbers of the published program: its own, on given prompts, written down.

The program of Wu et al. 2024 (commit in the golden files) ran unmodified; published_code_golden.py has the commands.
The instances were made so that its habits show: scores above 1, shifted and missing needle spans, answers its gate
drops though heads copied.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhstudy import detect
from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.data.align import token_span
from rhstudy.errors import StudyError
from rhstudy.heads.published_code import PublishedQuirks, find_by_set_overlap, rouge1_recall
from rhstudy.models.load import LoadedModel, load_model, model_folder
from rhstudy.types import Example, HeadScores, Needle, Span

HERE = Path(__file__).parent
TINY = json.loads((HERE / "published_code_parity_tiny.json").read_text(encoding="utf-8"))
SMOLLM2 = json.loads((HERE / "published_code_parity.json").read_text(encoding="utf-8"))
NUM_STEPS = 50
FLOAT32 = "float32"


def load(name: str, golden: dict[str, Any]) -> LoadedModel:
    """The very weights the program ran on, in float32 on the CPU."""
    folder = model_folder(ModelConfig(name=name))
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
    assert found == golden["provenance"][FLOAT32]["model_sha256"]
    return load_model(ModelConfig(name=name, device="cpu", dtype=FLOAT32), ContextConfig())


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load("tiny", TINY)


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    try:
        return load("smollm2-135m", SMOLLM2)
    except StudyError as error:
        pytest.skip(f"no weights of smollm2-135m here: {error}")


def example_of(instance: dict[str, Any], number: int, tokenizer: Any) -> Example:
    """The instance as the package knows it: the needle where it truly stands."""
    prompt = tokenizer.decode(instance["prompt_ids"])
    encoded = tokenizer(prompt, return_offsets_mapping=True)
    assert encoded["input_ids"] == instance["prompt_ids"]
    assert prompt.count(instance["needle"]) == 1
    start = prompt.index(instance["needle"])
    needle = Span(start, start + len(instance["needle"]))
    wanted = instance["real_needle"].rstrip(".")
    start += instance["needle"].casefold().index(wanted.casefold())
    answer = Span(start, start + len(wanted))
    return Example(
        example_id=f"instance-{number}",
        task="needle",
        recipe="published",
        question=instance["question"],
        answers=(instance["real_needle"],),
        prompt=prompt,
        answer=" " + instance["real_needle"],
        needles=(
            Needle(
                char_span=needle,
                token_span=token_span(encoded["offset_mapping"], needle),
                answer_char_span=answer,
                answer_token_span=token_span(encoded["offset_mapping"], answer),
            ),
        ),
        prompt_ids=tuple(instance["prompt_ids"]),
        answer_ids=tuple(tokenizer(" " + instance["real_needle"], add_special_tokens=False)["input_ids"]),
    )


def published_scores(instance: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    scores = np.zeros(shape)
    for head, value in instance[FLOAT32]["scores"].items():
        scores[tuple(int(part) for part in head.split("-"))] = value
    return scores


def ours(loaded: LoadedModel, instances: list[dict[str, Any]], quirks: PublishedQuirks, batch_size: int) -> HeadScores:
    examples = [example_of(item, number, loaded.tokenizer) for number, item in enumerate(instances)]
    return detect(
        loaded.model,
        loaded.tokenizer,
        examples,
        mode="published_code",
        published=quirks,
        max_new_tokens=NUM_STEPS,
        batch_size=batch_size,
    )


def check_scores(loaded: LoadedModel, golden: dict[str, Any], batch_size: int = 1) -> None:
    """Per head, and which instances are kept."""
    instances = sorted(golden["instances"], key=lambda item: len(item["prompt_ids"]))
    scores = ours(loaded, instances, PublishedQuirks(), batch_size)
    kept = {f"instance-{number}" for number, item in enumerate(instances) if item[FLOAT32]["kept"]}
    assert set(scores.example_ids) - set(scores.unscored) == kept
    assert all("ROUGE" in reason for reason in scores.unscored.values())
    for name, row, instance in zip(scores.example_ids, scores.score, instances, strict=True):
        if name in kept:
            np.testing.assert_allclose(row, published_scores(instance, row.shape), rtol=0, atol=1e-6, err_msg=name)
        else:
            assert np.isnan(row).all()


def check_scores_before_the_gate(loaded: LoadedModel, golden: dict[str, Any], batch_size: int = 1) -> None:
    """Of the instances that the gate drops; the others were compared with it."""
    dropped = [instance for instance in golden["instances"] if not instance[FLOAT32]["kept"]]
    scores = ours(loaded, dropped, PublishedQuirks(rouge_gate=False), batch_size)
    assert not scores.unscored
    wanted = [published_scores(instance, scores.score.shape[1:]) for instance in dropped]
    np.testing.assert_allclose(scores.score, np.stack(wanted), rtol=0, atol=1e-6)


def check_spans(loaded: LoadedModel, golden: dict[str, Any]) -> None:
    for item in golden["instances"]:
        needle_ids = loaded.tokenizer(item["real_needle"], add_special_tokens=False)["input_ids"]
        found = find_by_set_overlap(item["prompt_ids"], needle_ids)
        assert (found or (-1, -1)) == (item["needle_start"], item["needle_end"]), item["needle"]


def test_scores_of_tiny(tiny: LoadedModel) -> None:
    check_scores(tiny, TINY)


def test_scores_of_tiny_before_the_gate(tiny: LoadedModel) -> None:
    check_scores_before_the_gate(tiny, TINY)


def test_needle_spans_of_tiny(tiny: LoadedModel) -> None:
    check_spans(tiny, TINY)


@pytest.mark.real_model
@pytest.mark.slow
def test_scores_of_smollm2(smollm2: LoadedModel) -> None:
    check_scores(smollm2, SMOLLM2, batch_size=4)


@pytest.mark.real_model
@pytest.mark.slow
def test_scores_of_smollm2_before_the_gate(smollm2: LoadedModel) -> None:
    check_scores_before_the_gate(smollm2, SMOLLM2, batch_size=4)


@pytest.mark.real_model
def test_needle_spans_of_smollm2(smollm2: LoadedModel) -> None:
    check_spans(smollm2, SMOLLM2)


@pytest.mark.parametrize("golden", [TINY, SMOLLM2], ids=["tiny", "smollm2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rouge_recall(golden: dict[str, Any], dtype: str) -> None:
    for item in golden["instances"]:
        recall = rouge1_recall(item["real_needle"], item[dtype]["response"])
        assert 100 * recall == pytest.approx(item[dtype]["rouge1_recall"], abs=1e-9)


@pytest.mark.parametrize("golden", [TINY, SMOLLM2], ids=["tiny", "smollm2"])
def test_the_golden_instances_show_the_program_s_habits(golden: dict[str, Any]) -> None:
    """Else parity on them would prove little."""
    runs = [instance[FLOAT32] for instance in golden["instances"]]
    best = [max(run["scores"].values(), default=0.0) for run in runs]
    assert max(best) > 1, "repeats are counted"
    assert any(not run["kept"] and run["scores"] for run in runs), "the gate drops heads that copied"
    assert any(run["kept"] and not run["scores"] for run in runs), "a missing needle scores 0 and is averaged in"
    assert any(instance["needle_start"] == -1 for instance in golden["instances"])
    assert {len(run["output_ids"]) for run in runs} == {NUM_STEPS}, "no end-of-text token stops it"
