from __future__ import annotations

import datetime
import http.server
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mlflow.exceptions import MlflowException

from rhstudy.tracking.mlflow_server import _was_silent, probe
from rhstudy.tracking.mlflow_store import look

TLS_VARIABLES = {"own CA": "MLFLOW_TRACKING_SERVER_CERT_PATH", "client": "MLFLOW_TRACKING_CLIENT_CERT_PATH"}


class _Healthy(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class _Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        pass  # refused handshakes are what is tested


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that nobody knows, and its key, for 127.0.0.1; its own CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    place = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(place, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path = tmp_path_factory.mktemp("certificates") / "own.pem"
    path.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def serve(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Starts a server that answers /health; behind TLS it may want to see a client's certificate."""
    servers: list[http.server.HTTPServer] = []
    for name in (*TLS_VARIABLES.values(), "MLFLOW_TRACKING_INSECURE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def start(*, tls: bool = False, wants_client: bool = False, status: int = 200) -> str:
        server = _Quiet(("127.0.0.1", 0), type("Handler", (_Healthy,), {"status": status}))
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            if wants_client:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [200, 401, 500])
def test_any_status_is_an_answer(serve: Callable[..., str], status: int) -> None:
    uri = serve(status=status)
    probe(uri)
    assert not _was_silent(MlflowException("download failed"), uri)


def test_a_login_in_the_address_is_left_out(serve: Callable[..., str]) -> None:
    uri = serve().replace("://", "://ada:p@w@") + "/"
    probe(uri)
    assert not _was_silent(MlflowException("download failed"), uri)


def test_nobody_there_is_an_os_error_and_silence() -> None:
    with pytest.raises(OSError, match="refused"):
        probe("http://127.0.0.1:9")
    assert _was_silent(MlflowException("download failed"), "http://127.0.0.1:9")


def test_a_server_with_its_own_ca_answers_once_the_ca_is_named(
    serve: Callable[..., str], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = serve(tls=True)
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        probe(uri)
    monkeypatch.setenv(TLS_VARIABLES["own CA"], str(certificate))
    probe(uri)
    assert not _was_silent(MlflowException("download failed"), uri)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_a_server_whose_certificate_nobody_wants_checked_answers(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    uri = serve(tls=True)
    probe(uri)
    assert not _was_silent(MlflowException("download failed"), uri)


def test_a_server_that_wants_a_clients_certificate_is_shown_it(
    serve: Callable[..., str], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = serve(tls=True, wants_client=True)
    monkeypatch.setenv(TLS_VARIABLES["own CA"], str(certificate))
    with pytest.raises(requests.exceptions.ConnectionError):
        probe(uri)
    monkeypatch.setenv(TLS_VARIABLES["client"], str(certificate))
    probe(uri)


def test_contradicting_variables_are_said(
    serve: Callable[..., str], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TLS_VARIABLES["own CA"], str(certificate))
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    assert "MLFLOW_TRACKING_INSECURE_TLS" in look(serve(tls=True))
