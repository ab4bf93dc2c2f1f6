"""What a stage reads besides other runs, under content digests: source files, base models, number formats."""

from __future__ import annotations

from pathlib import Path

from rhstudy.configs import ModelConfig, cache_root, digest
from rhstudy.data.config import DataConfig
from rhstudy.data.corpus import source_digests
from rhstudy.data.examples_file import JSON_LINES, PARQUET
from rhstudy.data.named import with_named_sources
from rhstudy.data.recorded_needles import read_rewritten, rewritten_path
from rhstudy.models.load import base_model_digest, model_folder, resolve_device, resolve_dtype, tokenizer_digest
from rhstudy.tracking.artifacts import SCHEMA_VERSION, ArtifactFolder
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.references import resolve


def outside_content(kind: str, path: Path, content_digest: str) -> ArtifactFolder:
    """Something no run of ours wrote, as an input of a stage."""
    return ArtifactFolder(
        path=path, stage=kind, content_digest=content_digest, run_id="", schema_version=SCHEMA_VERSION
    )


def examples_path(data: ArtifactFolder, part: str) -> Path:
    """The file of a data set with the examples of `part`.

    Raises:
        InputError: the data set has no such part.
    """
    lines = data.path / f"{part}{JSON_LINES}"
    return lines if lines.is_file() else data.file(f"{part}{PARQUET}")


def resolved_data(config: DataConfig, model: ModelConfig) -> DataConfig:
    """`config` with a named data set replaced by its files; see `with_named_sources`."""
    return with_named_sources(config, cache_root(model.cache_dir))


def source_inputs(config: DataConfig) -> dict[str, ArtifactFolder]:
    """The data files of `config` under the sha256 of their content; the recording of rewritten needles where used."""
    found = {
        role: outside_content("source", Path(getattr(config, role)), content)
        for role, content in source_digests(config).items()
    }
    if config.resolved_knobs.needle_shares.get("rewritten", 0.0) > 0 and "train" in config.parts:
        recording = rewritten_path(config.task, config.rewritten_file)
        found["rewritten_file"] = outside_content("source", recording, read_rewritten(recording).sha256)
    return found


def tokenizer_input(config: ModelConfig) -> dict[str, ArtifactFolder]:
    """The tokenizer's files under one digest: data depend on it and on nothing else of the model."""
    folder = model_folder(config)
    return {"tokenizer": outside_content("tokenizer", folder, tokenizer_digest(folder))}


def model_inputs(config: ModelConfig) -> dict[str, ArtifactFolder]:
    """The base weights, and the number format and kind of device they run on."""
    folder, device = model_folder(config), resolve_device(config.device)
    numerics = digest(str(resolve_dtype(config, device)), device.type)
    return {
        "base_model": outside_content("base-model", folder, base_model_digest(folder, config)),
        "numerics": outside_content("numerics", folder, numerics),
    }


def checkpoint_input(recorder: Recorder, reference: str) -> dict[str, ArtifactFolder]:
    """The checkpoint behind `reference`, or nothing for an untuned model."""
    return {"checkpoint": resolve(recorder, reference)} if reference else {}
