"""Command `rewrite`: invented facts worded by a language model, checked and recorded; no run, a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rhstudy.configs import ModelConfig
from rhstudy.data.rewriting import Outcome, Plan, Writer, rewrite
from rhstudy.errors import require
from rhstudy.models.endpoint import EndpointWriter
from rhstudy.models.writer import LocalWriter, SamplingSettings

_log = logging.getLogger(__name__)
LEAST_ACCEPTANCE = 0.5
"""Below it the writer is not capable enough, and `templated_diverse` is the high-expression corner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteConfig:
    """Config of the command.

    Attributes:
        output: the recording, made or gone on with; ``data.rewritten_file`` of recipes names it.
        plan: which facts, and how many.
        model: an instruct model: a known name, a folder, a .gguf file or a hub id.
        url: an OpenAI-compatible endpoint instead, without ``/chat/completions``; `model.name` is then what the server
            calls the model, and the key, if any, stands in $RHSTUDY_API_KEY.
        sampling: how texts are drawn.
    """

    output: str
    plan: Plan = field(default_factory=Plan)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name="qwen2.5-coder-0.5b"))
    url: str = ""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    def __post_init__(self) -> None:
        require(bool(self.output), "output", "be given", self.output, "Name the file of the recording")
        valid = not self.url or self.url.startswith(("http://", "https://"))
        require(valid, "url", "start with http:// or https://", self.url, "Give the address of the endpoint")


def run(config: RewriteConfig) -> Mapping[str, Any]:
    """Write, or go on writing, and say how many texts passed.

    Raises:
        InputError: the file records something else; the model does not load.
        StudyError: the endpoint fails, or too few texts pass.
    """
    writer: Writer = LocalWriter(config.model, config.sampling)
    if config.url:
        writer = EndpointWriter(config.url, config.model.name, config.sampling)
    with tqdm(desc=f"rewrite {config.plan.task}", unit="needle", total=config.plan.num_needles, disable=None) as bar:

        def progress(outcome: Outcome) -> None:
            bar.n = outcome.num_needles
            bar.set_postfix(accepted=f"{outcome.acceptance_rate:.0%}")

        outcome = rewrite(config.plan, writer, Path(config.output), progress)
    if outcome.acceptance_rate < LEAST_ACCEPTANCE:
        _log.warning("only %.0f %% of the texts passed: take the recipes diverse_* for high concept expression",
                     100 * outcome.acceptance_rate)  # fmt: skip
    return {
        "output": config.output,
        "num_texts": outcome.num_texts,
        "num_accepted": outcome.num_accepted,
        "acceptance_rate": round(outcome.acceptance_rate, 4),
        "num_needles": outcome.num_needles,
        "refused": dict(outcome.reasons),
    }
