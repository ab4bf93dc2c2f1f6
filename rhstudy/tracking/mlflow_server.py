"""A tracking server that is not always there: asked once whether it answers, and told apart from other errors.

MLflow's client retries a request for about four minutes (``MLFLOW_HTTP_REQUEST_MAX_RETRIES``), so an outage of seconds
is not noticed. One that lasts longer ends the work with `UnreachableStoreError`; what is unfinished can be resumed.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import requests
import urllib3
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.credentials import get_default_host_creds

from rhstudy.errors import UnreachableStoreError, message

_SILENCE = (
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.RetryError,
    urllib3.exceptions.HTTPError,
)
REMEDY = "Start the same command again when it does: finished stages are reused and unfinished ones resumed"


def is_server(uri: str) -> bool:
    """Whether the store is behind a tracking server."""
    return uri.startswith(("http://", "https://"))


def probe(uri: str) -> None:
    """Ask the server once: MLflow's own client would retry an unreachable one for minutes.

    Certificates are those of MLflow's client (``MLFLOW_TRACKING_SERVER_CERT_PATH``, ``.._CLIENT_CERT_PATH``,
    ``.._INSECURE_TLS``): a server it can use is no server that is refused here.

    Raises:
        OSError: nothing answered within 20 s. All that `requests` raises is one.
        MlflowException: the variables contradict each other.
    """
    without_login = re.sub(r"(?<=://)[^/]*@", "", uri.rstrip("/"))
    trust = get_default_host_creds(without_login)  # type: ignore[no-untyped-call]
    # An answer, whatever its status; the login is no matter of reaching it.
    requests.get(f"{without_login}/health", timeout=20, verify=trust.verify, cert=trust.client_cert_path).close()


class PatientClient(MlflowClient):
    """An `MlflowClient` whose methods raise `UnreachableStoreError` when the server does not answer any more."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found

        @functools.wraps(found)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return found(*arguments, **named)
            except (MlflowException, requests.exceptions.RequestException) as error:
                uri = str(self.tracking_uri)
                if not _was_silent(error, uri):
                    raise
                raise UnreachableStoreError(message("tracking server", "answer", uri, REMEDY)) from error

        return call


def client_of(uri: str) -> MlflowClient:
    """The client for a store: a `PatientClient` for a server."""
    return PatientClient(uri) if is_server(uri) else MlflowClient(uri)


def _was_silent(error: BaseException, uri: str) -> bool:
    """Whether `error` means that the server, or the database behind it, gave no answer."""
    if isinstance(error, RestException):
        return False
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, _SILENCE):
            return True
        current = current.__cause__ or current.__context__
    # Downloads in threads lose the cause.
    try:
        probe(uri)
    except OSError:
        return True
    return False
