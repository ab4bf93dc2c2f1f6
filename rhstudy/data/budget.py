"""Equal budgets: every recipe of a study trains on the same number of examples, tokens and distinct rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rhstudy.data.assemble import TOLERANCE
from rhstudy.data.knobs import Knobs
from rhstudy.errors import InputError, message, require

SHARE = 0.01
"""Tokens may differ by this share, or by `TOLERANCE` tokens a prompt where that is more (below 1,600 tokens)."""


def tolerance(num_tokens: int) -> float:
    """The share by which a budget of prompts of `num_tokens` tokens may be missed."""
    return max(SHARE, TOLERANCE / num_tokens)


def distinct_counts(knobs: Knobs, num_examples: int, num_distinct: int = 0) -> tuple[int, int]:
    """Distinct facts that the examples are made of: the recipe's own, and rows of the real recipe mixed in.

    Args:
        knobs: the recipe; its `distinct_share` is of what the study gives every recipe.
        num_examples: asked for.
        num_distinct: the study's number, 0 = `num_examples`.
    """
    num_real, limit = round(knobs.real_fraction * num_examples), num_distinct or num_examples

    def of(count: int) -> int:
        return max(1, round(knobs.distinct_share * (count * limit / num_examples))) if count else 0

    return of(num_examples - num_real), of(num_real)


def check_distinct(part: Mapping[str, Any], knobs: Knobs, num_examples: int, num_distinct: int) -> None:
    """Check that a training part is made of the distinct rows asked for.

    Raises:
        InputError: it has others than `distinct_counts`; both numbers are named.
    """
    wanted, found = sum(distinct_counts(knobs, num_examples, num_distinct)), part["num_distinct_rows"]
    remedy = f"Set data.num_distinct, of the whole study, to {found} or what the recipe of fewest rows has"
    must = f"be {wanted} of {num_distinct}"
    require(found == wanted, f"distinct rows of recipe {knobs.name}", must, found, remedy)


def budget_facts(part: Mapping[str, Any], num_examples: int, num_tokens: int) -> dict[str, Any]:
    """What a data card says about the budget of a part.

    Args:
        part: its card, with ``num_examples``, ``num_prompt_tokens`` and ``num_distinct_rows``.
        num_examples: asked for.
        num_tokens: asked for, of each prompt.

    Raises:
        InputError: other than `num_examples` examples, or prompt tokens beyond `tolerance`; both numbers are named.
    """
    found = round(part["num_prompt_tokens"]["mean"] * part["num_examples"])
    facts = {
        "num_examples": num_examples,
        "num_prompt_tokens": num_examples * num_tokens,
        "num_prompt_tokens_found": found,
        "deviation": round(found / (num_examples * num_tokens) - 1, 6),
        "tolerance": round(tolerance(num_tokens), 6),
    }
    if part["num_examples"] != num_examples or abs(facts["deviation"]) > facts["tolerance"]:
        must = f"be {num_examples} examples and {facts['num_prompt_tokens']} tokens within {facts['tolerance']:.1%}"
        got = f"<{part['num_examples']} examples, {found} tokens, {facts['deviation']:+.1%}>"
        remedy = "Change the recipe, or the budget of the whole study: all recipes must have the same"
        raise InputError(message("recipe budget", must, got, remedy))
    return facts


def check_equal(name: str, num_tokens: float, reference: str, reference_tokens: float, prompt_tokens: int) -> float:
    """How much more a recipe trains on than another, as a share.

    Args:
        name: the recipe.
        num_tokens: its training tokens, answers included.
        reference: the other.
        reference_tokens: its training tokens.
        prompt_tokens: length of the prompts of both.

    Raises:
        InputError: more than `tolerance`.
    """
    excess = num_tokens / reference_tokens - 1
    if abs(excess) > tolerance(prompt_tokens):
        must = f"train on as many tokens as {reference} ({reference_tokens:.0f}) within {tolerance(prompt_tokens):.1%}"
        got = f"<{num_tokens:.0f} tokens, {excess:+.1%}>"
        raise InputError(message(f"recipe {name}", must, got, "Change the recipe, or the budget of the whole study"))
    return excess
