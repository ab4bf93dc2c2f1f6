"""Opening an MLflow store: an absolute URI, a sqlite file that is made exactly once, the experiment.

A missing sqlite file that several processes open at once crashes all but one of them (MLflow 3.17), and a process
killed while making it leaves tables missing. So it is made under a file lock, beside its place, and moved there whole.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.exc import SQLAlchemyError

from rhstudy.errors import InputError, StudyError, message, require
from rhstudy.tracking.mlflow_server import client_of, is_server, probe

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)
# It logs with a traceback what it then raises.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
# The last line of stdout is the stage's result; MLflow would print a link there when a run on a server ends.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

DEFAULT_URI = "sqlite:///mlflow.db"


def absolute_uri(uri: str = "") -> str:
    """`uri`, else ``$MLFLOW_TRACKING_URI``, else the default; a relative sqlite path made absolute."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "") or DEFAULT_URI
    match = re.fullmatch(r"sqlite:///([^/:?][^?]*)", uri)
    return f"sqlite:///{Path(match[1]).absolute()}" if match else uri


def database_file(uri: str) -> Path | None:
    """The file of an absolute sqlite URI; None for any other store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:////") else None


def open_store(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """A client of the store and the id of `experiment`, both made when missing; with no name, no experiment.

    Raises:
        InputError: the store cannot be reached or opened, or the experiment was deleted.
    """
    try:
        return _open(uri, experiment)
    except InputError:
        raise
    except (MlflowException, SQLAlchemyError, OSError, StudyError) as error:
        remedy = f"Check tracking.uri; MLflow says: {error}"
        raise InputError(message("tracking.uri", "be an MLflow store that opens", uri, remedy)) from error


def look(uri: str) -> str:
    """``yes``, ``not made yet`` or what is wrong with the store at an absolute `uri`; makes nothing."""
    database = database_file(uri)
    if database is not None and not database.exists():
        return "not made yet"
    try:
        if is_server(uri):
            probe(uri)
        client_of(uri).search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError, StudyError) as error:
        return f"no: {error}"
    return "yes"


def _open(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    database = database_file(uri)
    if database is None:
        if is_server(uri):
            probe(uri)
        client = client_of(uri)
        return client, _experiment(client, experiment, None)
    database.parent.mkdir(parents=True, exist_ok=True)
    root = database.parent / "mlartifacts"
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists() or database.stat().st_size == 0:
            make_database(database, root)
        client = MlflowClient(tracking_uri=uri)
        folder = re.sub(r"[^\w.-]+", "_", experiment)
        return client, _experiment(client, experiment, (root / folder).as_uri())


def make_database(database: Path, artifact_root: Path) -> None:
    """Make the tables beside `database`, then move them into place: a kill leaves no half-made store."""
    temporary = database.with_name(f"{database.name}.new")
    temporary.unlink(missing_ok=True)
    store = SqlAlchemyStore(f"sqlite:///{temporary}", artifact_root.as_uri())  # type: ignore[no-untyped-call]
    store.engine.dispose()
    SqlAlchemyStore._engine_map.pop(f"sqlite:///{temporary}", None)
    os.replace(temporary, database)


def _experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    if not name:
        return ""
    known = client.get_experiment_by_name(name)
    if known is not None:
        remedy = "Restore it in the MLflow UI or choose another tracking.experiment"
        alive = known.lifecycle_stage == "active"
        require(alive, "tracking.experiment", "not be deleted", name, remedy)
        return str(known.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=artifact_location))
    except MlflowException:
        # Another host may have made it on the server in between.
        known = client.get_experiment_by_name(name)
        if known is None:
            raise
        return str(known.experiment_id)
