"""What must hold of a model and its examples before and after heads are scored: clear errors instead of odd numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from rhstudy.errors import StudyError, message, require
from rhstudy.models.anatomy import learned_positions
from rhstudy.types import Example


def require_sound(model: PreTrainedModel, examples: Sequence[Example]) -> None:
    """Raise unless `model` can be scored on `examples` as they are.

    Raises:
        InputError: a model in training mode, ids given twice, an empty answer, needles outside the prompt, token ids
            that the model does not know, or more tokens than it has learned positions for.
    """
    training = any(module.training for module in model.modules())  # dropout of an adapter alone is enough
    require(not training, "model", "be in eval mode", "<training mode>", "Call model.eval() first")
    ids = Counter(example.example_id for example in examples)
    repeated = [name for name, count in ids.items() if count > 1]
    require(not repeated, "example ids", "be unique", repeated[:3], "Scores are kept by id: name each example")
    for example in examples:
        where = example.example_id
        require(bool(example.answer_ids), "answer_ids", "be at least one token", 0, "Give a gold answer", where)
        ends = [span.end for item in example.needles for span in (item.token_span, item.answer_token_span)]
        fits = bool(ends) and max(ends) <= example.num_prompt_tokens
        require(fits, "needles", "lie inside the prompt", ends, "Place at least one needle in its tokens", where)
    _require_known(model, examples)


def _require_known(model: PreTrainedModel, examples: Sequence[Example]) -> None:
    table = cast(nn.Embedding, model.get_input_embeddings())
    vocabulary, most = int(table.num_embeddings), learned_positions(model)
    for example in examples:
        ids = (*example.prompt_ids, *example.answer_ids)
        known = min(ids) >= 0 and max(ids) < vocabulary
        got = [min(ids), max(ids)]
        remedy = "Build the examples with the model's own tokenizer"
        require(known, "token ids", f"be those of the model, 0 to {vocabulary - 1}", got, remedy, example.example_id)
        must = f"have at most the {most} tokens the model has positions for"
        remedy = "Its positions are learned; shorten the examples or take a model with rotary positions"
        require(most is None or len(ids) <= most, "example", must, len(ids), remedy, example.example_id)


def require_finite(values: Tensor, group: Sequence[Example]) -> None:
    """Raise when what the model said of an example of `group` is NaN.

    Raises:
        StudyError: it is.
    """
    bad = [example.example_id for example, value in zip(group, values.tolist(), strict=True) if np.isnan(value)]
    if bad:
        remedy = "Its activations overflow or its weights are damaged: try bfloat16 or float32"
        raise StudyError(message("model", "put out finite logits", f"<NaN on {bad[0]}>", remedy))
