"""Stage `report`: an analysis, the reference's head map, knockouts and patches on one page; it measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rhstudy.configs import INPUT, NO_DIGEST, TrackingConfig
from rhstudy.errors import require
from rhstudy.stages.analyze import STAGE as ANALYZE
from rhstudy.stages.analyze import report_text
from rhstudy.stages.detect import STAGE as DETECT
from rhstudy.stages.intervene import STAGE as INTERVENE
from rhstudy.stages.knockout_page import knockout_text
from rhstudy.stages.outcomes import read_necessity
from rhstudy.stages.page import escaped, page
from rhstudy.stages.patch import STAGE as PATCH
from rhstudy.stages.patch_outcomes import read_patching
from rhstudy.stages.subject import read_subject, require_stage
from rhstudy.tracking.artifacts import ArtifactFolder
from rhstudy.tracking.opening import work_root
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve
from rhstudy.tracking.stage_run import StageResult, StageRun, StageSpec, run_stage

STAGE = "report"
REPORT = "report.md"
PAGE = "report.html"
FIGURES = "figures"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """Config of the stage.

    Attributes:
        analysis: run id or artifact folder of `analyze`.
        detect: run id or artifact folder of the reference's `detect`, for its head map; empty leaves that out.
        knockouts: run ids or artifact folders of `intervene`, a section each, in this order.
        patches: run ids or artifact folders of `patch`, a section each, in this order.
        title: of the page.
        tracking: where the run is recorded.
    """

    analysis: str = field(metadata=INPUT)
    detect: str = field(default="", metadata=INPUT)
    knockouts: tuple[str, ...] = field(default=(), metadata=INPUT)
    patches: tuple[str, ...] = field(default=(), metadata=INPUT)
    title: str = "Retrieval heads and synthetic context extension"
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NO_DIGEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """A part of the report: its markdown, then the figures of the artifacts it is about."""

    heading: str
    text: str
    artifacts: ArtifactFolder
    prefix: str = ""

    def figures(self) -> dict[str, Path]:
        """Path in the report -> file, in order of name."""
        found = sorted((self.artifacts.path / FIGURES).glob("*.png"))
        return {f"{FIGURES}/{self.prefix}{path.name}": path for path in found}

    def markdown(self) -> str:
        """The section with its figures below the text."""
        shown = [f"![{_caption(name)}]({name})" for name in self.figures()]
        return "\n\n".join(filter(None, [self.heading, self.text.strip(), *shown]))


def run(config: ReportConfig, recorder: Recorder, *, parent_run_id: str = "", run_name: str = "") -> StageResult:
    """Gather and record.

    Writes ``report.md``, the same as one self-contained ``report.html``, and the figures of all inputs.

    Raises:
        InputError: bad references, runs of other stages, or one knockout or patch given twice.
    """
    analysis = resolve(recorder, config.analysis)
    require_stage(analysis, ANALYZE, "analysis")
    inputs = {"analysis": analysis}
    if config.detect:
        inputs["detect"] = resolve(recorder, config.detect)
        require_stage(inputs["detect"], DETECT, "detect")
    for name, stage in (("knockouts", INTERVENE), ("patches", PATCH)):
        for index, reference in enumerate(getattr(config, name)):
            found = resolve(recorder, reference)
            require_stage(found, stage, f"{name}.{index}")
            twice = any(found.path.resolve() == other.path.resolve() for other in inputs.values())
            require(not twice, name, "name each run once", reference, "Leave out the second")
            inputs[f"{name}.{index}"] = found
    spec = StageSpec(
        stage=STAGE,
        run_name=run_name or STAGE,
        config=config,
        inputs=inputs,
        seed=0,
        work_root=work_root(config.tracking),
        parent_run_id=parent_run_id,
    )
    return run_stage(recorder, spec, lambda stage_run: _report(config, inputs, stage_run))


def _report(config: ReportConfig, inputs: Mapping[str, ArtifactFolder], run: StageRun) -> Mapping[str, Any]:
    sections = list(_sections(inputs))
    head, tail = f"# {escaped(config.title)}", _provenance(inputs)
    text = "\n\n".join([head, *(section.markdown() for section in sections), tail]) + "\n"
    images = _copy_figures(sections, run)
    (run.output_dir / REPORT).write_text(text, encoding="utf-8")
    (run.output_dir / PAGE).write_text(page(text, images, config.title), encoding="utf-8")
    run.mark_volatile(PAGE)  # it holds the figures
    described = "\n\n".join([head, *(f"{section.heading}\n\n{section.text}" for section in sections)])
    run.set_tags({"mlflow.note.content": described})
    verdict = str(inputs["analysis"].summary().get("verdict", ""))
    numbers = {f"num_{name}": sum(role.startswith(f"{name}.") for role in inputs) for name in ("knockouts", "patches")}
    return {"num_figures": len(images), **numbers, "verdict": verdict}


def _sections(inputs: Mapping[str, ArtifactFolder]) -> Sequence[_Section]:
    sections = [_Section(heading="", text=report_text(inputs["analysis"]), artifacts=inputs["analysis"])]
    if "detect" in inputs:
        detect = inputs["detect"]
        found, label = detect.summary(), escaped(read_subject(detect).label)
        text = f"{label}: {found['num_retrieval_heads']} of {found['num_heads']} heads retrieve."
        sections.append(_Section(heading="## Retrieval heads", text=text, artifacts=detect))
    knockouts = [(role, artifacts) for role, artifacts in inputs.items() if role.startswith("knockouts.")]
    for index, (_, artifacts) in enumerate(knockouts):
        necessity = read_necessity(artifacts)
        labels = {key: _label(necessity[key]) for key in ("subject", "heads_subject")}
        title = f"## Knockout {index + 1}: {labels['subject']}"
        text = knockout_text(necessity, labels["heads_subject"])
        sections.append(_Section(heading=title, text=text, artifacts=artifacts, prefix=f"knockout{index + 1}_"))
    return [*sections, *_patch_sections(inputs)]


def _patch_sections(inputs: Mapping[str, ArtifactFolder]) -> Iterator[_Section]:
    from rhstudy.stats.tables import patching_report

    patches = [artifacts for role, artifacts in inputs.items() if role.startswith("patches.")]
    for index, artifacts in enumerate(patches, 1):
        patching = read_patching(artifacts)
        donor, recipient = (_label(patching[key]) for key in ("donor_subject", "subject"))
        null = " (null patch)" if patching["same_recipe"] else ""
        title = f"## Patching {index}{null}: {donor} -> {recipient}"
        text = patching_report(patching, donor, recipient)
        yield _Section(heading=title, text=text, artifacts=artifacts, prefix=f"patching{index}_")


def _label(subject: Mapping[str, Any]) -> str:
    return escaped(f"{subject['model']}/{subject['recipe']}/seed{subject['seed']}")


def _caption(name: str) -> str:
    return Path(name).stem.replace("_", " ")


def _copy_figures(sections: Sequence[_Section], run: StageRun) -> dict[str, bytes]:
    (run.output_dir / FIGURES).mkdir()
    images = {name: path.read_bytes() for section in sections for name, path in section.figures().items()}
    for name, content in images.items():
        (run.output_dir / name).write_bytes(content)
        run.mark_volatile(name)
    return images


def _provenance(inputs: Mapping[str, ArtifactFolder]) -> str:
    """By content, not by run: the same results give the same report."""
    rows = [f"| {role} | {item.stage} | {item.content_digest} |" for role, item in inputs.items()]
    table = "\n".join(["| role | stage | content |", "| --- | --- | --- |", *rows])
    return (
        f"## Where this comes from\n\n{table}\n\nThe run of each has the tag `rhstudy.content_digest` with that value."
    )
