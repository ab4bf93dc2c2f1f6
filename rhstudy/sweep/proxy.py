"""A storage behind Optuna's gRPC proxy, for workers that reach no database: ``grpc://HOST:PORT``."""

from __future__ import annotations

import re
from typing import Any

from optuna.storages import BaseStorage, GrpcStorageProxy

from rhstudy.errors import InputError, UnreachableStoreError, message, require

SCHEME = "grpc://"
READY_S = 10.0


def open_proxy(text: str) -> BaseStorage:
    """The storage behind the proxy at `text`.

    Raises:
        InputError: no ``grpc://HOST:PORT``, or grpcio is not installed.
        UnreachableStoreError: nothing answers there.
    """
    address = re.fullmatch(r"grpc://([^/:@]+):(\d+)", text)
    require(address is not None, "storage", "be grpc://HOST:PORT", text, "Name the port that the proxy listens on")
    host, port = address.groups() if address else ("", "")
    try:
        storage = GrpcStorageProxy(host=host, port=int(port))
        storage.wait_server_ready(timeout=READY_S)
    except ImportError as error:
        remedy = f"pip install 'rhstudy[grpc]', or use another storage ({error})"
        raise InputError(message("storage", "be one that this machine can open", text, remedy)) from error
    except ConnectionError as error:
        remedy = f"Start the proxy there, then the same command again ({error})"
        raise UnreachableStoreError(message("storage", "answer", text, remedy)) from error
    return storage


def is_lost_call(error: Any) -> bool:
    """Whether `error` is gRPC's: the proxy, or the storage behind it, did not answer."""
    return any(kind.__module__.startswith("grpc") and kind.__name__ == "RpcError" for kind in type(error).__mro__)
