"""The command rewrite: who writes, what its last line says, and what it warns of."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rhstudy.cli import main
from rhstudy.configs import ModelConfig
from rhstudy.data.recorded_needles import read_rewritten
from rhstudy.data.rewriting import Plan
from rhstudy.errors import InputError
from rhstudy.models.endpoint import EndpointWriter
from rhstudy.models.writer import SamplingSettings
from rhstudy.stages import rewrite as command
from rhstudy.stages.rewrite import RewriteConfig, run


class Words:
    """A writer whose texts pass unless their seed is divisible by `fails_every`."""

    fails_every = 3

    def __init__(self, model: ModelConfig, sampling: SamplingSettings) -> None:
        self.identity: Mapping[str, Any] = {"model": model.name, "digest": "0", "top_k": sampling.top_k}

    def write(self, chats: Sequence[Sequence[Mapping[str, str]]], seeds: Sequence[int]) -> list[str]:
        return ["I cannot." if seed % self.fails_every == 0 else f"As the valley tells, {chat[-1]['content']}"
                for chat, seed in zip(chats, seeds, strict=True)]  # fmt: skip


def test_the_last_line_says_how_many_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "LocalWriter", Words)
    path = tmp_path / "new" / "mdqa.jsonl"
    arguments = ["rewrite", "--output", str(path), "--plan.num-needles", "12", "--sampling.top-k", "7"]
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    needles = read_rewritten(path)
    assert facts["output"] == str(path)
    assert facts["num_needles"] == sum(map(len, needles.groups.values())) >= 12
    assert facts["num_accepted"] == needles.num_accepted
    assert facts["acceptance_rate"] == round(needles.num_accepted / needles.num_texts, 4)
    assert sum(facts["refused"].values()) == needles.num_texts - needles.num_accepted > 0
    assert needles.header["writer"]["top_k"] == 7
    content = path.read_bytes()
    assert main(arguments) == 0
    assert path.read_bytes() == content
    assert main([*arguments, "--plan.seed", "1"]) == 2
    assert "must be the recording of this very config" in capsys.readouterr().err


def test_a_writer_that_fails_half_the_time_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Weak(Words):
        fails_every = 1

        def write(self, chats: Sequence[Sequence[Mapping[str, str]]], seeds: Sequence[int]) -> list[str]:
            texts = [f"As the valley tells, {chat[-1]['content']}" for chat in chats]
            return [text if seed % 4 == 0 else "I cannot." for text, seed in zip(texts, seeds, strict=True)]

    monkeypatch.setattr(command, "LocalWriter", Weak)
    with caplog.at_level(logging.WARNING):
        facts = run(RewriteConfig(output=str(tmp_path / "a.jsonl"), plan=Plan(num_needles=4)))
    assert facts["acceptance_rate"] < 0.5
    assert "of the texts passed: take the recipes diverse_*" in caplog.text


def test_an_endpoint_writes_where_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def write(self: EndpointWriter, chats: Sequence[Any], seeds: Sequence[int]) -> list[str]:
        asked.append(f"{self.url} {self.model}")
        return [f"As the valley tells, {chat[-1]['content']}" for chat in chats]

    monkeypatch.setattr(EndpointWriter, "write", write)
    config = RewriteConfig(
        output=str(tmp_path / "a.jsonl"), plan=Plan(num_needles=3, batch_size=4), url="http://somewhere/v1",
        model=ModelConfig(name="big"),
    )  # fmt: skip
    assert run(config)["num_accepted"] == 4
    assert asked == ["http://somewhere/v1 big"]


@pytest.mark.parametrize(
    ("values", "match"),
    [({"output": ""}, "output must be given"), ({"output": "a", "url": "ftp://x"}, "url must start with http")],
)
def test_bad_configs(values: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        RewriteConfig(**values)
