"""Where the trials of a sweep are kept: a journal file or a database, opened by many workers, for one search file.

The sweep's identity (its config and the content of its inputs) is stored with it; another one is refused, with the
difference.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend

from rhstudy.configs import digest, digest_view
from rhstudy.errors import InputError, message
from rhstudy.seeding import stream_seed
from rhstudy.sweep.config import SamplerName, SweepConfig, budget_dimensions, dimensions
from rhstudy.sweep.guard import FileGuard, Guard, JournalLock, ServerGuard, connect_arguments, holding
from rhstudy.sweep.objectives import DIRECTIONS
from rhstudy.sweep.patience import Patience, away_error, patient
from rhstudy.sweep.proxy import SCHEME, is_lost_call, open_proxy
from rhstudy.sweep.pruning import make_pruner
from rhstudy.sweep.space import budget_values, first_values
from rhstudy.sweep.token_guard import TokenGuard
from rhstudy.tracking.config_files import toml_text

DIGEST, TEXT, WORKERS = "rhstudy.digest", "rhstudy.config", "rhstudy.workers"
CORNERS, RUN = "rhstudy.corners", "rhstudy.run_id"
STALE_AFTER_HEARTBEATS = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSweep:
    """A sweep's storage, as one worker sees it.

    Attributes:
        study: Optuna's.
        guard: the lock under which workers look and decide.
        worker: number of this worker, from 0, in the order in which they joined.
        digest: of the sweep's identity.
        patience: with a storage that is away.
        ended_runs: numbers of lost trials whose runs this worker saw ended.
    """

    study: optuna.Study
    guard: Guard
    worker: int
    digest: str
    patience: Patience
    ended_runs: set[int] = field(default_factory=set)

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Hold the guard inside the block; a storage that is away at its start is waited for."""
        self.patience.call(self.guard.acquire)
        try:
            yield
        finally:
            self.guard.release()


def storage_text(config: SweepConfig) -> str:
    """Path or URL of the storage."""
    return config.storage or f"{config.name}.journal"


def identity(config: SweepConfig, inputs: Mapping[str, str]) -> tuple[str, str]:
    """Digest and readable text of what makes a sweep what it is.

    Args:
        config: of the sweep; budgets, storage and tracking do not count.
        inputs: role -> content digest of what it reads.
    """
    view = {**digest_view(config), "inputs": dict(inputs)}
    return digest("sweep", view), toml_text(view)


def join(config: SweepConfig, inputs: Mapping[str, str]) -> OpenSweep:
    """Open the storage, make the sweep in it when it is new, and become one of its workers.

    Raises:
        InputError: the storage cannot be opened, holds something else under this name, or another search file.
        AwayStorageError: a database that does not answer.
    """
    with _opened(config) as (storage, guard, patience):
        study = optuna.create_study(
            storage=storage,
            study_name=config.name,
            directions=[DIRECTIONS[goal] for goal in config.goals],
            load_if_exists=True,
        )
        name = _settle(study, config, inputs)
        worker = int(study.user_attrs.get(WORKERS, 0))
        study.set_user_attr(WORKERS, worker + 1)
        study.pruner = make_pruner(config.pruner, config.report_at, len(config.seeds))
        study.sampler = _sampler(config.sampler, config.seed, worker, len(study.get_trials(deepcopy=False)))
    return OpenSweep(study=study, guard=guard, worker=worker, digest=name, patience=patience)


def look(config: SweepConfig, inputs: Mapping[str, str]) -> OpenSweep:
    """Open the sweep that is in the storage, without becoming one of its workers.

    Raises:
        InputError: there is none, or it has another search file; else as `join`.
    """
    text = storage_text(config)
    absent = InputError(message("storage", f"hold the sweep {config.name}", text, "Run `rhstudy sweep` first"))
    if "://" not in text and not Path(text).is_file():
        raise absent
    with _opened(config) as (storage, guard, patience):
        try:
            study = optuna.load_study(storage=storage, study_name=config.name)
        except KeyError:
            raise absent from None
        if DIGEST not in study.user_attrs:
            raise absent
        name = _settle(study, config, inputs)
    return OpenSweep(study=study, guard=guard, worker=-1, digest=name, patience=patience)


@contextlib.contextmanager
def _opened(config: SweepConfig) -> Iterator[tuple[BaseStorage, Guard, Patience]]:
    """The storage, with the guard held inside the block; nothing is waited for until the block ends."""
    text = storage_text(config)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings(), explained(text):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        guard, patience = _guard(text, config), Patience(text)
        with holding(guard):
            yield patient(_storage(config, text), patience), guard, patience
        patience.wait_up_to(config.patience_s)


class explained:
    """Failures of the storage inside the block become errors that say what to do."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        known = isinstance(error, optuna.exceptions.StorageInternalError | SQLAlchemyError)
        if error is not None and (known or is_lost_call(error)):
            raise away_error(self._text, error) from error


def _guard(text: str, config: SweepConfig) -> Guard:
    from sqlalchemy.exc import ArgumentError

    if text.startswith(SCHEME):
        return TokenGuard(open_proxy(text), config.name, STALE_AFTER_HEARTBEATS * config.heartbeat_s)
    if "://" in text and not text.startswith("sqlite:///"):
        try:
            return ServerGuard(text, config.name)
        except (ModuleNotFoundError, ArgumentError) as error:
            remedy = f"Install its driver, or use the path of a journal file ({error})"
            raise InputError(message("storage", "be a database that can be opened", text, remedy)) from error
    path = Path(text.removeprefix("sqlite:///").partition("?")[0])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        guard = FileGuard(path.with_name(f"{path.name}.guard"))
        guard.acquire()
        guard.release()
    except OSError as error:
        remedy = f"Give a path in a folder to write in; {error.strerror}"
        raise InputError(message("storage", "be a file that can be written", text, remedy)) from error
    return guard


def _storage(config: SweepConfig, text: str) -> BaseStorage:
    if "://" not in text:
        path = Path(text)
        try:
            path.touch()
            return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))  # type: ignore[arg-type]
        except (ValueError, KeyError, TypeError) as error:
            remedy = "Name another file, or move this one away"
            raise InputError(message("storage", "be a journal of Optuna", text, remedy, str(error))) from error
    if text.startswith(SCHEME):
        return open_proxy(text)
    # No ping before each use: a connection that was lost is noticed by what is asked, which is asked again.
    return RDBStorage(text, engine_kwargs={"pool_pre_ping": False, "connect_args": connect_arguments(text)})


def retry(config: SweepConfig) -> RetryHeartbeatStaleTrialCallback:
    """Enqueues a trial of a dead worker again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RetryHeartbeatStaleTrialCallback(max_retry=config.max_retries)


def _settle(study: optuna.Study, config: SweepConfig, inputs: Mapping[str, str]) -> str:
    """Make the stored sweep this one, or see that it is; returns its digest."""
    name, text = identity(config, inputs)
    known = study.user_attrs
    if DIGEST not in known:
        empty = not study.get_trials(deepcopy=False)
        remedy = "Give the sweep another name, or another storage"
        if not empty:
            raise InputError(message("name", "be free in the storage", config.name, remedy, storage_text(config)))
        study.set_user_attr(TEXT, text)
        study.set_user_attr(DIGEST, name)
    elif known[DIGEST] != name:
        shown = _difference(str(known[TEXT]), text)
        remedy = f"Take the change back, or give the sweep another name or storage. Stored (-), given (+): {shown}"
        raise InputError(message("search file", "be the one that the sweep began with", config.name, remedy))
    if config.corners and not study.user_attrs.get(CORNERS):
        _enqueue_corners(study, config)
    return name


def _difference(stored: str, given: str) -> str:
    lines = difflib.unified_diff(stored.splitlines(), given.splitlines(), lineterm="", n=0)
    changed = [line for line in lines if line[:1] in ("+", "-") and line[:3] not in ("+++", "---")]
    return "; ".join(changed[:20]) + ("; ..." if len(changed) > 20 else "")


def _enqueue_corners(study: optuna.Study, config: SweepConfig) -> None:
    found = first_values(dimensions(config), config.base, config.data.task)
    budget = budget_values(budget_dimensions(config))
    for corner, values in found.items():
        study.enqueue_trial({**values, **budget}, user_attrs={"corner": corner}, skip_if_exists=True)
    study.set_user_attr(CORNERS, list(found) or ["none"])
    _log.info("corners in the space: %s", ", ".join(found) or "none")


def _sampler(name: SamplerName, root_seed: int, worker: int, num_trials: int) -> optuna.samplers.BaseSampler:
    """The sampler of one worker; a worker that comes back draws anew, since more trials are there."""
    seed = stream_seed(root_seed, "sampler", worker, num_trials) % 2**32
    if name == "qmc":  # its workers share one sequence, whose next index the storage holds
        shared = stream_seed(root_seed, "sampler") % 2**32
        return optuna.samplers.QMCSampler(
            seed=shared, scramble=True, warn_independent_sampling=False, warn_asynchronous_seeding=False
        )
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)
