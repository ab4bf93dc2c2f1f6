"""Stages each in a container of their own: `rhstudy study --runtime docker`.

The study stays in this process and records its own runs; each stage that is not finished yet is done by
``rhstudy STAGE config.toml`` in a fresh container, nested under the same parent. Digests are the same on both sides,
so host and container runs reuse each other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker

from rhstudy.configs import plain
from rhstudy.containers.config import ContainerConfig
from rhstudy.containers.container import Container, Ended
from rhstudy.containers.image import Image, ensure_image, project_root, wanted_gpus
from rhstudy.containers.launch import (
    close_launch,
    end_abandoned,
    ended_tags,
    image_tags,
    new_launch,
    patiently,
    reason_of,
)
from rhstudy.containers.runtime import Job, engine_for, make_container
from rhstudy.errors import InputError, StudyError, message
from rhstudy.models.load import resolve_device
from rhstudy.tracking.config_files import toml_text
from rhstudy.tracking.mlflow_store import absolute_uri
from rhstudy.tracking.process import LAUNCH_TAG
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import Launched, StageSpec, stages_launched_by

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def stages_in_containers(recorder: Recorder, config: ContainerConfig, tracking_uri: str) -> Iterator[None]:
    """Inside the block every stage runs in a container, or on the host when `config` says so or no engine answers.

    Args:
        recorder: where runs are recorded.
        config: runtime, image, limits.
        tracking_uri: of the MLflow store; empty is the default one.

    Raises:
        EngineError: no engine answers, or the image cannot be had.
    """
    client, _ = engine_for(config)
    if client is None:
        yield
        return
    end_abandoned(recorder, client)
    here = Path.cwd()
    image = ensure_image(client, here if config.image else project_root(here), config)
    _log.info("stages run in containers of %s (%.2f GB)", image.name, image.size_bytes / 1e9)
    with stages_launched_by(_StageLauncher(recorder, config, absolute_uri(tracking_uri), client, image)):
        yield


class _StageLauncher:
    """Runs a stage in a container; see `rhstudy.tracking.stage_run.Launcher`."""

    def __init__(
        self, recorder: Recorder, config: ContainerConfig, uri: str, client: docker.DockerClient, image: Image
    ) -> None:
        self._recorder, self._config, self._uri = recorder, config, uri
        self._client, self._image = client, image
        # A stage's digest names the kind of device: only where it is the same in here and in there can the finished
        # runs be looked up from here.
        self.same_digests = (resolve_device("auto").type == "cuda") == (wanted_gpus(config) != "none")

    def __call__(self, spec: StageSpec) -> Launched:
        launch = new_launch()
        folder = spec.work_root / "launches" / launch
        folder.mkdir(parents=True)
        path = folder / "config.toml"
        path.write_text(toml_text(_values(spec.config)), encoding="utf-8")
        root = self._recorder.artifact_root(spec.parent_run_id)
        place = {"RHSTUDY_PARENT_RUN_ID": spec.parent_run_id, "RHSTUDY_RUN_NAME": spec.run_name}
        job = Job(
            command=["rhstudy", spec.stage, str(path)],
            working_dir=Path.cwd(),
            uri=self._uri,
            environment=place,
            written=(spec.work_root, *self._recorder.folders(), *filter(None, [root])),
        )
        try:
            container = make_container(self._client, self._image, job, self._config, launch)
            return _launched(self._run(container, image_tags(self._image, container, job.command)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, container: Container, tags: dict[str, str]) -> Ended:
        ended = Ended(exit_code=None, stopped=True)
        try:
            ended = container.run(_to_stderr)
        finally:
            tags = tags | {"rhstudy.runtime": "docker"}
            patience_s = self._config.patience_s
            patiently("the stage's end", patience_s, lambda: self._close(container.launch, ended, tags))
        return ended

    def _close(self, launch: str, ended: Ended, tags: dict[str, str]) -> None:
        close_launch(self._recorder, launch, ended)
        for record in self._recorder.find_runs({LAUNCH_TAG: launch}):
            self._recorder.set_tags(record.run_id, tags | ended_tags(ended))


def _values(config: Any) -> dict[str, Any]:
    """The stage's config; the store is what the environment says, which may have another address in there."""
    values: dict[str, Any] = plain(config)
    if "tracking" in values:
        values["tracking"]["uri"] = ""
    return values


def _to_stderr(text: str, is_error: bool) -> None:
    """Progress and messages of a stage go to stderr; its facts on stdout are for `_launched`."""
    if is_error or sys.stdout.isatty():
        sys.stderr.write(text)
        sys.stderr.flush()


def _launched(ended: Ended) -> Launched:
    if ended.exit_code != 0:
        kind = InputError if ended.exit_code == 2 else StudyError
        raise kind(reason_of(ended))
    # In a terminal stdout and stderr are one, and a warning may follow the facts.
    for line in (ended.last_stdout_line, *reversed(ended.last_lines)):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            facts: dict[str, Any] = json.loads(line)
            return Launched(run_id=str(facts["run_id"]), reused=bool(facts["reused"]))
    remedy = "Use an image of the same version of rhstudy"
    raise StudyError(message("the stage's last line", "be its facts as JSON", ended.last_stdout_line, remedy))
