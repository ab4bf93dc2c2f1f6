"""Stage `make-data`: public rows + a recipe -> examples with token-exact needle spans, and their data card."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from rhstudy.configs import INPUT, NO_DIGEST, ModelConfig, TrackingConfig
from rhstudy.data.budget import budget_facts, check_distinct
from rhstudy.data.build import Build, num_distinct_of
from rhstudy.data.card_page import card_page
from rhstudy.data.config import DataConfig
from rhstudy.data.examples_file import examples_suffix, read_examples, write_examples
from rhstudy.data.knobs import Knobs
from rhstudy.data.licences import INVENTED, WRITTEN, licence_of
from rhstudy.data.portrait import Portrait
from rhstudy.data.preview import print_example
from rhstudy.data.recorded_needles import read_rewritten, rewritten_path
from rhstudy.errors import require
from rhstudy.keeping import kept
from rhstudy.models.load import load_tokenizer
from rhstudy.stages.inputs import examples_path, resolved_data, source_inputs, tokenizer_input
from rhstudy.tracking.opening import work_root
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import StageResult, StageRun, StageSpec, run_stage
from rhstudy.types import Example

STAGE = "make-data"
CARD = "card.json"
CARD_PAGE = "card.md"
PROVENANCE = "provenance.json"
PREPARED, NOTES, FILES = "prepared", "notes.json", "files"
"""In the work folder: a data set built ahead, what it says of its run, its files."""

_log = logging.getLogger(__name__)


@runtime_checkable
class RunNotes(Protocol):
    """What a build uses of its run; see `StageRun`."""

    @property
    def output_dir(self) -> Path:
        """Every file written here becomes an artifact."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""

    def log_input(self, name: str, content_digest: str, source: str, context: str) -> None:
        """Record a data set."""

    def mark_volatile(self, *names: str) -> None:
        """Name files whose bytes may differ between equal runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeDataConfig:
    """Config of the stage.

    Attributes:
        data: what to build; see `DataConfig`.
        model: whose tokenizer and chat template the prompts are made for.
        preview: print so many examples of each part, needle and answer highlighted.
        tracking: where the run is recorded.
    """

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig, metadata=INPUT)
    preview: int = field(default=0, metadata=NO_DIGEST)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NO_DIGEST)

    def __post_init__(self) -> None:
        require(self.preview >= 0, "preview", "be at least 0", self.preview, "Give the number of examples to print")


def run(config: MakeDataConfig, recorder: Recorder, *, parent_run_id: str = "", run_name: str = "") -> StageResult:
    """Build the data set and record it.

    Writes ``<part>.parquet`` (``.jsonl`` where pyarrow is not installed) for every part, ``card.json``, the same for
    reading as ``card.md``, and ``provenance.json``. With `preview` it prints so many examples of each part first.

    Raises:
        InputError: see `rhstudy.data.build.build_dataset`.
    """
    spec = dataclasses.replace(stage_spec(config), parent_run_id=parent_run_id)
    spec = dataclasses.replace(spec, run_name=run_name) if run_name else spec
    result = run_stage(recorder, spec, lambda stage_run: _take_or_build(spec.config, stage_run))
    if config.preview and result.reused:
        _preview_reused(config, result)
    return result


def stage_spec(config: MakeDataConfig) -> StageSpec:
    """The stage as `run_stage` takes it; errors as `run`, as far as reading the sources."""
    data = resolved_data(config.data, config.model)
    return StageSpec(
        stage=STAGE,
        run_name=f"{STAGE} {data.resolved_knobs.name} {'+'.join(data.parts)}",
        config=dataclasses.replace(config, data=data),
        inputs={**source_inputs(data), **tokenizer_input(config.model)},
        seed=data.seed,
        work_root=work_root(config.tracking),
    )


def _take_or_build(config: MakeDataConfig, run: StageRun) -> Mapping[str, Any]:
    """What was built ahead (`rhstudy.stages.ahead`), said and logged as if it had been built now; else build it."""
    prepared = run.work_dir / PREPARED
    if not prepared.is_dir():
        return build(config, run)
    told = json.loads((prepared / NOTES).read_text(encoding="utf-8"))
    # Copied: a try that fails from here on is followed by one that finds them again.
    shutil.copytree(prepared / FILES, run.output_dir, dirs_exist_ok=True)
    run.set_tags(told["tags"])
    run.mark_volatile(*told["volatile"])
    for facts in told["inputs"]:
        run.log_input(*facts)
    summary: dict[str, Any] = told["summary"]
    return summary


def _preview_reused(config: MakeDataConfig, result: StageResult) -> None:
    for part in config.data.parts:
        examples = read_examples(examples_path(result.artifacts, part), load_tokenizer(config.model))
        for example in examples[: config.preview]:
            print_example(example, part)


def build(config: MakeDataConfig, run: RunNotes, *, show: bool = True) -> Mapping[str, Any]:
    """Build the data set into `run.output_dir`; `show` its progress. Returns the headline numbers.

    Raises:
        InputError: see `rhstudy.data.build.build_dataset`.
    """
    with tqdm(desc=STAGE, unit="example", disable=None if show else True) as bar:

        def progress(part: str, done: int, wanted: int) -> None:
            bar.set_description(f"{STAGE} {part}", refresh=False)
            bar.total = wanted
            bar.n = done
            bar.refresh() if done == wanted else bar.update(0)

        tokenizer = tokenizer_of(config.model)
        with contextlib.closing(Build(config.data, tokenizer, progress)) as build:
            written = {part: _write_part(config, part, build.examples(part), run) for part in config.data.parts}
        card = build.card()
    card["parts"] = {part: {**facts, **written[part]} for part, facts in card["parts"].items()}
    if "train" in card["parts"]:
        num_tokens = config.data.num_tokens - config.data.num_reserved_tokens
        part, data = card["parts"]["train"], config.data
        card["budget"] = budget_facts(part, data.num_examples, num_tokens)
        if data.num_distinct:
            check_distinct(part, data.resolved_knobs, data.num_examples, data.num_distinct)
            card["budget"]["num_distinct"] = data.num_distinct
    card |= _provenance(config.data, card)
    _write_card(card, run)
    for role, known in card["sources"].items():
        run.log_input(role, known["sha256"], known["reference"], "source")
    return _headline(config, card)


def with_equal_rows(data: DataConfig, recipes: Sequence[Knobs], model: ModelConfig) -> DataConfig:
    """`data` with a number of distinct rows that every one of `recipes` has, where it gives none.

    Raises:
        InputError: see `rhstudy.data.build.num_distinct_of`.
    """
    if data.num_distinct or not recipes:
        return data
    count = num_distinct_of(dataclasses.replace(data, parts=("train",)), recipes, tokenizer_of(model))
    if count < data.num_examples:
        _log.info("%d distinct rows in %d examples of every recipe", count, data.num_examples)
    return dataclasses.replace(data, num_distinct=count)


def tokenizer_of(model: ModelConfig) -> Any:
    """The model's tokenizer; inside `rhstudy.keeping.keeping`, the same one only once."""
    known = tokenizer_input(model)["tokenizer"].content_digest
    return kept("tokenizer", known, lambda: load_tokenizer(model))


def _write_part(config: MakeDataConfig, part: str, examples: Iterable[Example], run: RunNotes) -> dict[str, Any]:
    """Write one part and look at it; returns what its card says beside its counts."""
    portrait = Portrait()
    path = run.output_dir / f"{part}{examples_suffix()}"
    sha256 = write_examples(path, map(portrait.add, _previewed(config.preview, part, examples)))
    run.mark_volatile(path.name)  # its rows are in the digest through the card; its bytes go with pyarrow's version
    run.log_input(f"{config.data.task} {config.data.resolved_knobs.name} {part}", sha256, path.name, part)
    run.set_tags({f"rhstudy.data.{part}.sha256": sha256})
    return {**portrait.facts(), "examples_sha256": sha256}


def _provenance(config: DataConfig, card: Mapping[str, Any]) -> dict[str, Any]:
    """Sources with their licences, the recording of rewritten needles among them; notes on what was invented."""
    sources = {role: dict(source) for role, source in card["sources"].items()}
    notes, shares = list(card["notes"]), config.resolved_knobs.needle_shares
    for source in sources.values():
        source["licence"] = licence_of(source["sha256"], source["reference"])
    if "train" in config.parts and shares.get("rewritten", 0.0) > 0:
        needles = read_rewritten(rewritten_path(config.task, config.rewritten_file))
        sources["rewritten_file"] = {
            "reference": str(needles.path),
            "sha256": needles.sha256,
            "num_rows": needles.num_texts,
            "licence": WRITTEN,
        }
        writer, rate = needles.header["writer"], needles.num_accepted / needles.num_texts
        notes.append(f"Rewritten needles: {needles.num_accepted} of {needles.num_texts} texts of {writer['model']} "
                     f"passed the checks ({rate:.1%}).")  # fmt: skip
    if "train" in config.parts and set(shares) - {"real"}:
        notes.append(f"Invented needles: {INVENTED}.")
    return {"sources": sources, "notes": notes}


def _previewed(count: int, part: str, examples: Iterable[Example]) -> Iterator[Example]:
    for number, example in enumerate(examples):
        if number < count:
            print_example(example, part)
        yield example


def _write_card(whole: Mapping[str, Any], run: RunNotes) -> None:
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
    (run.output_dir / CARD_PAGE).write_text(card_page(card), encoding="utf-8")
    run.mark_volatile(PROVENANCE, CARD_PAGE)


def _headline(config: MakeDataConfig, card: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "recipe": config.data.resolved_knobs.name,
        "recipe_digest": card["recipe"]["digest"],
    }
    for part, found in card["parts"].items():
        facts[f"num_examples_{part}"] = found["num_examples"]
        facts[f"num_tokens_{part}"] = found["num_tokens_total"]
        facts[f"mean_prompt_tokens_{part}"] = found["num_prompt_tokens"]["mean"]
        facts[f"answer_in_needle_share_{part}"] = found["share_answer_in_needle"]
    return facts
