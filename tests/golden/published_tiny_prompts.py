"""Prompts for the shipped model `tiny` on which the published program's scores are not zero: token ids, as JSON.

    python tests/golden/published_tiny_prompts.py > prompts.json

Each is a literal cue prompt as the package writes it (`rhstudy.data.layout`): sentences of this repository's LICENSE as
documents, one of them with an invented fact. The program looks for the answer's tokens without the space before it, so
most invented words begin with a letter that this tokenizer never joins to a space; "Vellmoor" begins with one it joins,
for which the program's span is (-1, -1). "ucucanuc" repeats tokens, which the program counts at every step; after some
answers the model quotes the fact again, and scores pass 1. Of the last fact five words are wanted and the model copies
one: the ROUGE gate drops an instance whose scores are above 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rhstudy.data.facts import Passage
from rhstudy.data.layout import CUE_DOCUMENTS, frame_of, render
from rhstudy.data.tasks.cue_retrieval import cue_question

LICENSE = Path(__file__).parents[2] / "LICENSE"
TINY = Path(__file__).parents[2] / "rhstudy" / "models" / "tiny"
TITLE = "Orrin Bay"
FACTS = (
    ("The harbour of the small town was first built by the sailor", "xandorel", "and his two sons."),
    ("Most people in the valley still call the northern river the", "uzbelmar", "in their old language."),
    ("The winner of the first race around the great lake was", "xovintor", "of the southern club."),
    ("In the spring the king gave the castle to a man named", "ucucanuc", "who lived there alone."),
    ("The bird that is shown on the flag of the island is", "xilamber", "and it cannot fly."),
    ("The only ship that came back from the long winter voyage was", "Vellmoor", "with all her crew."),
    ("The book about the war in the mountains was written by", "ximaliman", "after he had left the army."),
    ("The road from the church to the market was named after", "uvenquist", "by the new council."),
)
LONG_ANSWER = "uvenquist by the new council"
LICENSE_STARTS = (40, 160, 280, 530, 950, 640, 950, 880)
"""The word of LICENSE at which the other documents of each prompt begin."""
GOLD_PLACES = (0, 1, 2, 2, 2, 2, 2, 1)
NUM_WORDS = 15
"""Words of LICENSE in each of the other documents; prompt and 50 new tokens stay within 256 tokens."""


def prompts(tokenizer: Any) -> list[dict[str, Any]]:
    """One prompt a fact."""
    words = LICENSE.read_text(encoding="utf-8").split()
    made = []
    for (before, answer, after), start, place in zip(FACTS, LICENSE_STARTS, GOLD_PLACES, strict=True):
        gold = Passage(TITLE, f"{before} {answer} {after}")
        others = [Passage("License", " ".join(words[at : at + NUM_WORDS])) for at in (start, start + 80)]
        question = cue_question(gold.text, len(before) + 1)
        rendered = render(frame_of(tokenizer), CUE_DOCUMENTS, [*others[:place], gold, *others[place:]], place, question)
        made.append(
            {
                "prompt_ids": tokenizer(rendered.prompt).input_ids,
                "needle": gold.text,
                "question": question,
                "real_needle": LONG_ANSWER if LONG_ANSWER.startswith(answer) else answer,
            }
        )
    return made


if __name__ == "__main__":
    from transformers import AutoTokenizer

    json.dump(prompts(AutoTokenizer.from_pretrained(TINY)), sys.stdout)
