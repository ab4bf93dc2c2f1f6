"""The command line: parse, validate, dispatch.

    rhstudy quickstart|study|sweep|sweep-validate [CONFIG.toml] [--dotted.key value ...] [--dry-run]
    rhstudy make-data|finetune|detect|evaluate|intervene|patch|analyze|report|pretrain [CONFIG.toml] [...]
    rhstudy heads show A | heads compare A B | heads export A --format FORMAT --output PATH
    rhstudy import-runs FOLDER
    rhstudy image | environment | kubernetes | rewrite [CONFIG.toml] [...]

Progress and messages go to stderr; the last line of stdout is one JSON object.
Exit codes: 0 done, 1 failure, 2 usage or bad input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import logging
import math
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rhstudy.configs import TrackingConfig, digest, load_toml, plain, unvalidated
from rhstudy.errors import InputError, StudyError, masked, message
from rhstudy.lasting import lasting_imports

STAGES: Mapping[str, tuple[str, str]] = {
    "make-data": ("rhstudy.stages.make_data", "MakeDataConfig"),
    "finetune": ("rhstudy.stages.finetune", "FinetuneConfig"),
    "detect": ("rhstudy.stages.detect", "DetectConfig"),
    "evaluate": ("rhstudy.stages.evaluate", "EvaluateConfig"),
    "intervene": ("rhstudy.stages.intervene", "InterveneConfig"),
    "patch": ("rhstudy.stages.patch", "PatchConfig"),
    "analyze": ("rhstudy.stages.analyze", "AnalyzeConfig"),
    "report": ("rhstudy.stages.report", "ReportConfig"),
    "study": ("rhstudy.study", "StudyConfig"),
    "quickstart": ("rhstudy.quickstart", "QuickstartConfig"),
    "pretrain": ("rhstudy.stages.pretrain", "PretrainConfig"),
    "sweep": ("rhstudy.sweep.run", "SweepConfig"),
    "sweep-validate": ("rhstudy.sweep.validate", "SweepConfig"),
}
STUDIES = ("study", "quickstart", "sweep", "sweep-validate")
# Commands that record no run: from a config to the facts of the last line.
TOOLS: Mapping[str, tuple[str, str]] = {
    "kubernetes": ("rhstudy.kubernetes", "KubernetesConfig"),
    "environment": ("rhstudy.environment", "EnvironmentConfig"),
    "rewrite": ("rhstudy.stages.rewrite", "RewriteConfig"),
}
USAGE = """usage: rhstudy COMMAND [CONFIG.toml] [--dotted.key value ...]

start here:
  quickstart    a small study on this machine: no network, no server, minutes on two cores

stages, in order (rhstudy COMMAND --help lists every key):
  make-data     public rows + a recipe -> examples with exact needle spans
  finetune      attention modules only, RoPE raised -> checkpoint
  detect        retrieval score of every head on real-task prompts
  evaluate      greedy answers -> F1, exact match, gold-answer loss
  intervene     heads knocked out while the model answers, against matched random heads
  patch         heads of one fine-tuned model put into another while it answers
  analyze       head recall against the real-data model, and what it predicts; analyze TABLE --out DIR: a table of yours
  report        an analysis, head map, knockouts and patches on one page
most of them:
  study         recipes x seeds, nested runs, reuse of finished stages
  sweep         search of the space of recipes for head recall; --worker on any number of machines
  sweep-validate  what the search's signals choose, evaluated on the real task: regret, correlation, seconds saved
in containers:
  image         build the image of this checkout when its files changed; --output DIR: bill of materials, licences
  COMMAND --runtime docker|auto|host   each stage in a container of its own (auto: on the host without an engine)
          --backend-config JSON|FILE   variant, GPUs, network, memory, volumes: rhstudy/containers/config.py
other:
  pretrain      a small model with retrieval heads from nothing, on literal cues over passages
  rewrite       invented facts worded by a language model, checked and recorded, for the recipes high_*
  heads show A | heads compare A B     facts on head scores (run id, folder, score file, published JSON, QRHead list)
  heads export A                       head scores as QRHead, DuoAttention or HeadKV read them
  import-runs FOLDER                   log the folder recorder's runs into MLflow
  environment                          what a bug report needs, without secrets
  kubernetes                           job template and backend config for `mlflow run -b kubernetes`

--dry-run prints the resolved config and its digest. `rhstudy --skip-empty COMMAND ...` leaves out arguments that are
empty, with their flags: for launchers whose parameters always have a value.
Exit codes: 0 done, 1 failure, 2 usage or bad input."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if os.environ.get("RHSTUDY_QUOTED_ARGUMENTS"):  # see kubernetes.py
        arguments = ["".join(shlex.split(argument)) for argument in arguments]
    _quiet_libraries()
    try:
        return _dispatch(arguments)
    except StudyError as error:
        print(f"rhstudy: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as stop:  # tyro: 0 after --help, 2 for bad usage
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print("rhstudy: interrupted. Start the same command again to go on.", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stderr if not arguments else sys.stdout)
        return 2 if not arguments else 0
    if arguments[0] == "--version":
        print(importlib.import_module("rhstudy").__version__)
        return 0
    if arguments[0] == "--skip-empty":
        arguments = without_empty(arguments[1:])
        return _dispatch(arguments)
    command, rest = arguments[0], arguments[1:]
    if command in STAGES:
        return _stage(command, rest)
    if command in TOOLS:
        return _tool(command, rest)
    others = {"heads": _heads, "import-runs": _import_runs, "image": _image}
    if command in others:
        return others[command](rest)
    raise InputError(message("command", f"be one of {', '.join([*STAGES, *TOOLS, *others])}", command,
                             "See rhstudy --help"))  # fmt: skip


def without_empty(arguments: Sequence[str]) -> list[str]:
    """`arguments` without the empty ones and the flags before them."""
    kept: list[str] = []
    for argument in arguments:
        if argument:
            kept.append(argument)
        elif kept and kept[-1].startswith("--") and "=" not in kept[-1]:
            kept.pop()
    return kept


def _tool(command: str, rest: list[str]) -> int:
    module, name = TOOLS[command]
    # The environment is also printed where tyro is missing.
    bare = command == "environment" and not rest
    config = getattr(importlib.import_module(module), name)() if bare else _config(command, rest)
    print(_json_line(importlib.import_module(module).run(config)))
    return 0


def _stage(command: str, rest: list[str]) -> int:
    dry_run = "--dry-run" in rest
    runtime, rest = _runtime_options([item for item in rest if item != "--dry-run"])
    with lasting_imports():
        config = _config(command, rest)
    if dry_run:
        values = plain(config)
        identity = {key: value for key, value in values.items() if key != "tracking"}
        print(json.dumps({"command": command, "config": values, "digest": digest(command, identity)}))
        return 0
    with lasting_imports():
        recorder = _open_recorder(config.tracking)
    for run_id in importlib.import_module("rhstudy.tracking.process").end_stale_runs(recorder):
        logging.warning("run %s was left by a process that is gone; it is KILLED now", run_id)
    module = importlib.import_module(STAGES[command][0])
    place = {} if command in STUDIES else importlib.import_module("rhstudy.tracking.process").launched_place()
    with contextlib.ExitStack() as stack:
        stack.enter_context(importlib.import_module("rhstudy.tracking.endings").explained_launch(recorder, command))
        if runtime is not None:
            stages = importlib.import_module("rhstudy.containers.stages")
            stack.enter_context(stages.stages_in_containers(recorder, runtime, config.tracking.uri))
        ran = module.run(config, recorder, **place)
    facts = _study_facts(module, ran, config.tracking) if command in STUDIES else _facts(ran.run_id, ran)
    print(_json_line(facts))
    return 0


def _runtime_options(rest: list[str]) -> tuple[Any, list[str]]:
    """The container config of ``--runtime`` and ``--backend-config`` (None: stages run in this process), and the rest.

    Raises:
        InputError: a flag without value, or a wrong value.
    """
    given: dict[str, str] = {}
    others: list[str] = []
    items = iter(rest)
    for item in items:
        flag, has_value, value = item.partition("=")
        flag = flag.replace("_", "-")
        if flag in ("--runtime", "--backend-config"):
            found = value if has_value else next(items, None)
            if found is None:
                raise InputError(message(flag, "have a value", "<nothing>", "See rhstudy --help"))
            given[flag] = found
        else:
            others.append(item)
    if not given:
        return None, others
    config = importlib.import_module("rhstudy.containers.config")
    return config.container_config(given.get("--backend-config"), runtime=given.get("--runtime", "")), others


def _study_facts(module: Any, study: Any, tracking: TrackingConfig) -> dict[str, Any]:
    """Print what a study found and where to look; returns the facts of its last line."""
    print(module.summary_text(study))
    if hasattr(study, "facts"):  # a sweep
        print(_how_to_look(tracking), file=sys.stderr)
        return dict(study.facts)
    if hasattr(study, "part"):  # it has neither analysis nor report
        print(_how_to_look(tracking), file=sys.stderr)
        return {"run_id": study.run_id, "part": study.part, "num_arms": len(study.arms), "reused": study.reused}
    print(f"Report with figures: {study.report.artifacts.path / 'report.html'}", file=sys.stderr)
    print(_how_to_look(tracking), file=sys.stderr)
    return _facts(study.run_id, study.analysis) | {"report_dir": str(study.report.artifacts.path)}


def _facts(run_id: str, result: Any) -> dict[str, Any]:
    facts = {"run_id": run_id, "artifact_dir": str(result.artifacts.path), "reused": result.reused}
    return {**facts, **result.summary}


def _config(command: str, rest: list[str]) -> Any:
    import tyro

    module, name = {**STAGES, **TOOLS}[command]
    cls = getattr(importlib.import_module(module), name)
    if command == "analyze" and rest and rest[0].lower().endswith((".csv", ".parquet")):
        rest = ["--table", *rest]
    has_file = bool(rest) and not rest[0].startswith("-")
    values = load_toml(rest[0]) if has_file else {}
    default = unvalidated(cls, values, missing=tyro.MISSING, where=rest[0] if has_file else "")
    return tyro.cli(
        cls,
        prog=f"rhstudy {command}",
        args=rest[has_file:],
        default=default,
        config=(tyro.conf.AvoidSubcommands,),
    )


def _open_recorder(tracking: TrackingConfig) -> Any:
    return importlib.import_module("rhstudy.tracking.opening").open_recorder(tracking)


def _how_to_look(tracking: TrackingConfig) -> str:
    if tracking.recorder == "folder":
        return f"Runs are in {tracking.folder}; log them into MLflow with: rhstudy import-runs {tracking.folder}"
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith(("http://", "https://")):
        return f"Compare the runs: {masked(uri)}   (experiment {tracking.experiment!r})"
    return f"Compare the runs: mlflow ui --backend-store-uri {masked(uri)}   (experiment {tracking.experiment!r})"


def _json_line(facts: Mapping[str, Any]) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in facts.items()
    }
    return json.dumps(finite)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _HeadsOptions:
    """Facts on head scores: show A, compare A B. What export A takes: rhstudy heads export --help.

    Attributes:
        threshold: mean score from which a head is a retrieval head.
        top_k: 0, or take this many heads of highest mean score instead; needed for attention mass and QRHead lists.
        head_set: show: also compare with these heads, "8-21,8-14" or a file of QRHead's (text, YAML).
        tracking: where run ids are looked up.
    """

    threshold: float = 0.1
    top_k: int = 0
    head_set: str = ""
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)


def _positionals(rest: list[str]) -> tuple[list[str], list[str]]:
    count = next((index for index, item in enumerate(rest) if item.startswith("--")), len(rest))
    return rest[:count], rest[count:]


def _heads(rest: list[str]) -> int:
    import tyro

    names, flags = _positionals(rest)
    exporting = names[:1] == ["export"]
    exports = importlib.import_module("rhstudy.heads.export")
    options: Any = tyro.cli(
        exports.ExportConfig if exporting else _HeadsOptions,
        prog="rhstudy heads export" if exporting else "rhstudy heads",
        args=flags,
    )
    wanted = {"show": 1, "compare": 2, "export": 1}
    usage_ok = bool(names) and wanted.get(names[0]) == len(names) - 1
    if not usage_ok:
        remedy = "A and B are run ids, artifact folders, score files, published JSON files or QRHead lists"
        must = "be followed by show A or compare A B or export A --format F --output PATH"
        raise InputError(message("heads", must, " ".join(names), remedy))
    compare = importlib.import_module("rhstudy.heads.compare")
    scores = [compare.load_any(_score_path(name, options.tracking)) for name in names[1:]]
    facts = exports.export(scores[0], options) if exporting else _heads_facts(names[0], scores, options)
    for key, value in facts.items():
        if key != "top_heads":
            print(f"{key:>26}  {value}", file=sys.stderr)
    print(_json_line(facts))
    return 0


def _heads_facts(command: str, scores: list[Any], options: _HeadsOptions) -> dict[str, Any]:
    compare = importlib.import_module("rhstudy.heads.compare")
    rule = (options.threshold, options.top_k)
    if command == "compare":
        if options.head_set:
            raise InputError(message("head_set", "be left out with compare", options.head_set, "It is for heads show"))
        return dict(compare.compare_facts(*scores, *rule))
    facts = dict(compare.show_facts(*scores, *rule))
    if options.head_set:
        facts |= compare.head_set_facts(*scores, options.head_set, *rule)
    return facts


def _score_path(name: str, tracking: TrackingConfig) -> Path:
    path = Path(name)
    if path.is_file() or (path.is_dir() and not (path / "run.json").is_file()):
        return path
    known = path.is_dir() or re.fullmatch(r"[0-9a-f]{32}", name)
    if not known:
        remedy = "Give a run id, a folder or file of `rhstudy detect`, a published score file or QRHead list"
        raise InputError(message("heads", "be existing head scores", name, remedy))
    references = importlib.import_module("rhstudy.tracking.references")
    artifacts = references.resolve(_open_recorder(tracking), name)
    return Path(artifacts.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ImageOptions:
    """Build the image of this checkout, when one of its files changed.

    Attributes:
        variant: cpu, cuNNN, or auto (cu130 where there is a GPU, else cpu); empty leaves it to the backend config.
        backend_config: JSON or a JSON file with further keys of the container config (base image, build network).
        output: folder to copy the image's bill of materials and licence list to.
    """

    variant: str = ""
    backend_config: str = ""
    output: str = ""


def _image(rest: list[str]) -> int:
    import tyro

    options = tyro.cli(_ImageOptions, prog="rhstudy image", args=rest)
    configs = importlib.import_module("rhstudy.containers.config")
    config = configs.container_config(options.backend_config, variant=options.variant)
    facts = importlib.import_module("rhstudy.containers.image").image_facts(config, options.output)
    print(_json_line(facts))
    return 0


def _import_runs(rest: list[str]) -> int:
    import tyro

    names, flags = _positionals(rest)
    tracking = tyro.cli(TrackingConfig, prog="rhstudy import-runs", args=flags)
    if len(names) != 1:
        remedy = "Name the folder that the folder recorder wrote"
        raise InputError(message("import-runs", "be followed by one folder", " ".join(names), remedy))
    importer = importlib.import_module("rhstudy.tracking.import_runs")
    imported = importer.import_folder_runs(names[0], _open_recorder(dataclasses.replace(tracking, recorder="mlflow")))
    rows = [dataclasses.asdict(item) for item in imported]
    print(_json_line({"num_runs": len(rows), "runs": rows}))
    return 0


def _quiet_libraries() -> None:
    """Our own progress and messages stay readable: no weight-loading bars, no notes of optional kernels."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("bitsandbytes", "alembic", "mlflow", "httpx", "matplotlib", "bm25s", "faker", "torch", "git"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' own bars follow it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


if __name__ == "__main__":
    sys.exit(main())
