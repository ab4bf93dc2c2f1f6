"""What the lines of a recording of rewritten needles must hold, checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rhstudy.data.answers import leak_forms
from rhstudy.data.relations import ALL_RELATIONS, INSIGHTS
from rhstudy.errors import require

_NAME = "rewritten needles"
_REMEDY = "Mend the line, or make another recording with `rhstudy rewrite`"
_Check = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_named_texts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, value.values()))


def _is_voice(value: Any) -> bool:
    """A prompt that the writer saw: its examples are pairs of a sentence and its wording."""
    shots = value.get("examples") if isinstance(value, Mapping) else None
    return isinstance(shots, list) and all(_are_texts(shot) and len(shot) == 2 for shot in shots)


_WRITTEN: dict[str, tuple[str, _Check]] = {
    "id": ("a text", _is_text),
    "attempt": ("a whole number", _is_count),
    "text": ("a text", _is_text),
    "refused": ("a text", _is_text),
}
_ASKED: dict[str, tuple[str, _Check]] = {
    "group": ("a text", _is_text),
    "statement": ("a text", _is_text),
    "required": ("a list of texts", _are_texts),
    "answer": ("a text", _is_text),
    "copied": ("true or false", lambda value: isinstance(value, bool)),
    "facts": ("an object", lambda value: isinstance(value, Mapping)),
}
_RELATIONS, _INSIGHTS = {item.name for item in ALL_RELATIONS}, {item.name for item in INSIGHTS}
_RELATION: dict[str, tuple[str, _Check]] = {
    "relation": ("a known relation", lambda value: _is_text(value) and value in _RELATIONS),
    "subject": ("a text", _is_text),
    "value": ("a text", _is_text),
    "value_kind": ("a text", _is_text),
    "hop": ("a whole number", _is_count),
}
_INSIGHT: dict[str, tuple[str, _Check]] = {
    "insight": ("a known insight", lambda value: _is_text(value) and value in _INSIGHTS),
    "query": ("a text", _is_text),
    "slots": ("an object of texts", _are_named_texts),
}


def check_header(header: Mapping[str, Any], where: str) -> None:
    """Check what is read of the first line: the writer's name, and the examples of its prompts.

    Raises:
        InputError: names the key, with file and line.
    """
    writer, prompts = header.get("writer"), header.get("prompts", {})
    named = isinstance(writer, Mapping) and _is_text(writer.get("model"))
    require(named, f"{_NAME}.writer", "name its model", writer, _REMEDY, where)
    shown = isinstance(prompts, Mapping) and all(map(_is_voice, prompts.values()))
    require(shown, f"{_NAME}.prompts", "hold pairs of texts as examples", prompts, _REMEDY, where)


def check_row(row: Mapping[str, Any], asked: set[str], where: str) -> None:
    """Check a line of a text that was written.

    Args:
        row: its values.
        asked: ids of the lines before it that say what was asked for (first attempts); this one's is added.
        where: file and line.

    Raises:
        InputError: names the key, with file and line.
    """
    _check(row, _WRITTEN, _NAME, where)
    if row["attempt"]:
        must = "repeat the id of a first attempt above it"
        require(row["id"] in asked, f"{_NAME}.id", must, row["id"], _REMEDY, where)
        return
    require(row["id"] not in asked, f"{_NAME}.id", "be unique among first attempts", row["id"], _REMEDY, where)
    asked.add(row["id"])
    _check(row, _ASKED, _NAME, where)
    facts = row["facts"]
    _check(facts, _INSIGHT if "insight" in facts else _RELATION, f"{_NAME}.facts", where)
    names = list(facts["slots"].values()) if "insight" in facts else [facts["subject"], facts["value"]]
    require(row["required"] == names, f"{_NAME}.required", f"be {names}", row["required"], _REMEDY, where)
    require(all(map(leak_forms, zip(names))), f"{_NAME}.required", "each hold a word", names, _REMEDY, where)
    answer = "" if "insight" in facts else facts["value"]
    require(row["answer"] == answer, f"{_NAME}.answer", f"be {answer!r}", row["answer"], _REMEDY, where)
    sound = bool(answer) or not row["copied"]
    require(sound, f"{_NAME}.copied", "be false of an insight, which has no answer to copy", True, _REMEDY, where)


def _check(row: Mapping[str, Any], wanted: Mapping[str, tuple[str, _Check]], name: str, where: str) -> None:
    for key, (kind, holds) in wanted.items():
        require(key in row, f"{name}.{key}", f"be {kind}", "<nothing>", _REMEDY, where)
        require(holds(row[key]), f"{name}.{key}", f"be {kind}", row[key], _REMEDY, where)
