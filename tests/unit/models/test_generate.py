"""Padded batches and greedy decoding against transformers' own generate, one example at a time."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, random_example, tiny_model

from rhstudy.errors import InputError
from rhstudy.models.batch import pad_batch
from rhstudy.models.decode import greedy
from rhstudy.models.generate import gold_nll, mean_answer_nll, prefill, run_rows
from rhstudy.seeding import generator

NO_STOP: frozenset[int] = frozenset()


def _examples() -> list:
    rng = generator(11, "generate examples")
    return [random_example(rng, index, length=50 + 9 * index, answer=2 + index) for index in range(3)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [0, 13])
def test_batched_greedy_equals_library_generate(family: str, chunk: int) -> None:
    loaded, examples = tiny_model(family), _examples()
    batch = pad_batch([example.prompt_ids for example in examples], [[]] * 3, 0, "cpu")
    with torch.inference_mode():
        start = prefill(loaded.model, batch, chunk_tokens=chunk)
        ours = greedy(loaded.model, start, max_new_tokens=8, stop_ids=NO_STOP)
    for example, tokens in zip(examples, ours, strict=True):
        ids = torch.tensor([example.prompt_ids])
        expected = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=None
        )
        assert tokens == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_gold_nll_from_cache_equals_one_plain_pass_and_leaves_the_cache(family: str) -> None:
    loaded, examples = tiny_model(family), _examples()
    answers = [example.answer_ids for example in examples]
    batch = pad_batch([example.prompt_ids for example in examples], [[]] * 3, 0, "cpu")
    with torch.inference_mode():
        untouched = greedy(loaded.model, prefill(loaded.model, batch), max_new_tokens=6, stop_ids=NO_STOP)
        start = prefill(loaded.model, batch)
        losses = gold_nll(loaded.model, start, answers)
        assert greedy(loaded.model, start, max_new_tokens=6, stop_ids=NO_STOP) == untouched
        for loss, example in zip(losses, examples, strict=True):
            ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
            log_p = loaded.model(ids).logits[0].float().log_softmax(-1)
            first = example.num_prompt_tokens
            expected = -sum(float(log_p[first + t - 1, w]) for t, w in enumerate(example.answer_ids))
            assert float(loss) == pytest.approx(expected / len(example.answer_ids), abs=1e-5)


def test_logits_do_not_depend_on_batch_or_chunks() -> None:
    loaded, examples = tiny_model("llama"), _examples()
    prompts, answers = [e.prompt_ids for e in examples], [e.answer_ids for e in examples]
    together = pad_batch(prompts, answers, 0, "cpu")
    with torch.inference_mode():
        batched = run_rows(loaded.model, together, first_row=together.num_prompt - 1, chunk_tokens=16)
        nll = mean_answer_nll(batched, answers)
        for row in range(3):
            alone = pad_batch(prompts[row : row + 1], answers[row : row + 1], 0, "cpu")
            logits = run_rows(loaded.model, alone, first_row=alone.num_prompt - 1)
            width = len(answers[row]) + 1
            torch.testing.assert_close(batched[row, :width], logits[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(nll[row : row + 1], mean_answer_nll(logits, answers[row : row + 1]))


def test_stop_ids_end_each_example_on_its_own() -> None:
    loaded, examples = tiny_model("qwen2"), _examples()
    batch = pad_batch([example.prompt_ids for example in examples], [[]] * 3, 0, "cpu")
    with torch.inference_mode():
        free = greedy(loaded.model, prefill(loaded.model, batch), max_new_tokens=8, stop_ids=NO_STOP)
        stop = free[0][3]
        cut = greedy(loaded.model, prefill(loaded.model, batch), max_new_tokens=8, stop_ids=frozenset({stop}))
    for full, short in zip(free, cut, strict=True):
        assert short == (full[: full.index(stop)] if stop in full else full)


def test_bad_batches_are_refused() -> None:
    with pytest.raises(InputError, match="prompts must be non-empty"):
        pad_batch([[1], []], [[], []], 0, "cpu")
    with pytest.raises(InputError, match="answers must be one per prompt"):
        pad_batch([[1]], [], 0, "cpu")
    batch = pad_batch([[1, 2]], [[3]], 0, "cpu")
    with pytest.raises(InputError, match="batch must hold prompts alone"):
        prefill(tiny_model("llama").model, batch)
