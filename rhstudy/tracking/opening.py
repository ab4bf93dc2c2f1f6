"""From a `TrackingConfig` to a recorder and the folder for unfinished work."""

from __future__ import annotations

import os
from pathlib import Path

from rhstudy.configs import TrackingConfig, cache_root
from rhstudy.errors import InputError, masked, message
from rhstudy.tracking.folder_recorder import FolderRecorder
from rhstudy.tracking.recorder import Recorder


def open_recorder(config: TrackingConfig) -> Recorder:
    """The recorder `config` asks for; MLflow is imported only when it is the one.

    Raises:
        InputError: MLflow is asked for and not installed, or its store cannot be opened.
    """
    if config.recorder == "folder":
        return FolderRecorder(config.folder)
    try:
        from rhstudy.tracking.mlflow_recorder import MlflowRecorder
    except ModuleNotFoundError as error:
        remedy = "Install mlflow, or use --tracking.recorder folder and import the runs later"
        text = message("tracking.recorder", "be folder where MLflow is missing", config.recorder, remedy, str(error))
        raise InputError(text) from error
    downloads = work_root(config).parent / "downloads"
    # In a run of `mlflow run` the experiment is the launcher's; another one might be given artifacts at a path of a
    # container, which is gone when it ends.
    experiment = "" if os.environ.get("MLFLOW_RUN_ID") else config.experiment
    return MlflowRecorder(config.uri, experiment, download_dir=downloads, system_metrics=config.system_metrics)


def work_root(config: TrackingConfig) -> Path:
    """Where unfinished work is kept for resuming: `config.work_dir`, else ``work`` in the cache folder."""
    if config.work_dir:
        return Path(config.work_dir).absolute()
    return cache_root().absolute() / "work"


def look_at_store(config: TrackingConfig) -> dict[str, str]:
    """Where runs would be recorded and whether that opens, with nothing made and no credentials shown."""
    if config.recorder == "folder":
        there = "exists" if Path(config.folder).is_dir() else "not made yet"
        return {"recorder": "folder", "place": config.folder, "opens": there}
    try:
        from rhstudy.tracking.mlflow_store import absolute_uri, look
    except ModuleNotFoundError as error:
        return {"recorder": "mlflow", "place": config.uri and masked(config.uri), "opens": f"no: {error}"}
    uri = absolute_uri(config.uri)
    return {"recorder": "mlflow", "place": masked(uri), "opens": masked(look(uri))}
