"""Stage `make-data`: public rows + a recipe -> examples with token-exact needle spans, and their data card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from rhstudy.configs import INPUT, NO_DIGEST, ModelConfig, TrackingConfig
from rhstudy.data.build import Build
from rhstudy.data.config import DataConfig
from rhstudy.data.examples_file import write_examples
from rhstudy.models.load import load_tokenizer
from rhstudy.stages.inputs import resolved_data, source_inputs, tokenizer_input
from rhstudy.tracking.opening import work_root
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import StageResult, StageRun, StageSpec, run_stage

STAGE = "make-data"
CARD = "card.json"
PROVENANCE = "provenance.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeDataConfig:
    """Config of the stage.

    Attributes:
        data: what to build; see `DataConfig`.
        model: whose tokenizer and chat template the prompts are made for.
        tracking: where the run is recorded.
    """

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig, metadata=INPUT)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NO_DIGEST)


def run(config: MakeDataConfig, recorder: Recorder, *, parent_run_id: str = "", run_name: str = "") -> StageResult:
    """Build the data set and record it.

    Writes ``<part>.jsonl`` for every part, ``card.json`` and ``provenance.json``.

    Raises:
        InputError: see `rhstudy.data.build.build_dataset`.
    """
    data = resolved_data(config.data, config.model)
    config = dataclasses.replace(config, data=data)
    spec = StageSpec(
        stage=STAGE,
        run_name=run_name or f"{STAGE} {data.resolved_knobs.name} {'+'.join(data.parts)}",
        config=config,
        inputs={**source_inputs(data), **tokenizer_input(config.model)},
        seed=data.seed,
        work_root=work_root(config.tracking),
        parent_run_id=parent_run_id,
    )
    return run_stage(recorder, spec, lambda stage_run: _build(config, stage_run))


def _build(config: MakeDataConfig, run: StageRun) -> Mapping[str, Any]:
    with tqdm(desc=STAGE, unit="example", disable=None) as bar:

        def progress(part: str, done: int, wanted: int) -> None:
            bar.set_description(f"{STAGE} {part}", refresh=False)
            bar.total = wanted
            bar.n = done
            bar.refresh() if done == wanted else bar.update(0)

        build = Build(config.data, load_tokenizer(config.model), progress)
        for part in config.data.parts:
            write_examples(run.output_dir / f"{part}.jsonl", build.examples(part))
    card = build.card()
    _write_card(card, run)
    for source in ("train_file", "eval_file", "passages_file"):
        known = card["sources"].get(source)
        if known:
            run.log_input(source, known["sha256"], known["reference"], "source")
    return _headline(config, card)


def _write_card(whole: Mapping[str, Any], run: StageRun) -> None:
    """The card is content; where the sources lay and which libraries read them is provenance and in no digest."""
    card = dict(whole)
    provenance = {"versions": card.pop("versions"), "sources": card.pop("sources")}
    card["sources"] = {
        name: {key: value for key, value in source.items() if key != "reference"}
        for name, source in provenance["sources"].items()
    }
    for name, values in ((CARD, card), (PROVENANCE, provenance)):
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (run.output_dir / name).write_text(text, encoding="utf-8")
    run.mark_volatile(PROVENANCE)


def _headline(config: MakeDataConfig, card: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "recipe": config.data.resolved_knobs.name,
        "recipe_digest": config.data.resolved_knobs.digest,
    }
    for part, found in card["parts"].items():
        facts[f"num_examples_{part}"] = found["num_examples"]
        facts[f"num_tokens_{part}"] = found["num_tokens_total"]
        facts[f"mean_prompt_tokens_{part}"] = found["num_prompt_tokens"]["mean"]
        facts[f"answer_in_needle_share_{part}"] = found["share_answer_in_needle"]
    return facts
