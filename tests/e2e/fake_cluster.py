"""Stand-ins for what no test machine has: a Docker engine that builds and pushes, and a cluster that runs jobs.

Both speak HTTP to the real clients (docker's SDK, Kubernetes' own). The image is the folder of its build context; a job
is its container's command, run in that folder with the job's environment.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate

IMAGE_ID = "sha256:" + "ab" * 32
DIGEST = "sha256:" + "cd" * 32


class _Server:
    """An HTTP server in a thread; `answer(method, path, body)` gives status and JSON."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                body = self._body()
                outer.requests.append(f"{self.command} {self.path}")
                status, answer = outer.answer(self.command, self.path.partition("?")[0], body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            do_GET = do_POST = do_DELETE = _do

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        raise NotImplementedError

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class FakeEngine(_Server):
    """A Docker engine whose images are folders."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.image = folder
        self.tag = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        path = re.sub(r"^/v[\d.]+", "", path)
        if path == "/version":
            return 200, {"ApiVersion": "1.47", "Version": "27.0"}
        if path == "/build":
            with tarfile.open(fileobj=io.BytesIO(body)) as context:
                context.extractall(self.image, filter="data")
            (query,) = [item for item in self.requests if "/build?" in item]
            self.tag = re.search(r"[?&]t=([^&]+)", query)[1].replace("%2F", "/").replace("%3A", ":")  # type: ignore[index]
            return 200, json.dumps({"stream": f"Successfully built {IMAGE_ID[7:19]}\n"}).encode()
        if path.endswith("/push"):
            return 200, json.dumps({"status": "pushed"}).encode()
        if path.startswith("/images/"):
            return 200, {"Id": IMAGE_ID, "RepoTags": [self.tag]}
        if path.startswith("/distribution/"):
            return 200, {"Descriptor": {"digest": DIGEST, "size": 1, "mediaType": "x"}, "Platforms": []}
        return 404, {"message": f"unknown to the fake engine: {method} {path}"}


class FakeCluster(_Server):
    """The part of the Kubernetes API that jobs need; refuses a job that its schema refuses."""

    def __init__(self, image: Path, environment: Mapping[str, str]) -> None:
        super().__init__()
        self._image, self._environment = image, environment
        self.jobs: dict[str, dict[str, Any]] = {}
        self.outputs: dict[str, str] = {}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        match = re.fullmatch(r"/apis/batch/v1/namespaces/([\w-]+)/jobs(?:/([\w-]+)(/status)?)?", path)
        if match is None:
            return 404, {"message": f"unknown to the fake cluster: {method} {path}"}
        namespace, name, _ = match.groups()
        if method == "POST":
            job = json.loads(body)
            kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
            assert job["metadata"]["namespace"] == namespace
            self.jobs[job["metadata"]["name"]] = {**job, "status": {}}
            threading.Thread(target=self._run, args=(job["metadata"]["name"],), daemon=True).start()
            return 201, job
        if name not in self.jobs:
            return 404, {"message": "no such job"}
        return 200, self.jobs.pop(name) if method == "DELETE" else self.jobs[name]

    def _run(self, name: str) -> None:
        job = self.jobs[name]
        job["status"] = {"startTime": "2026-01-01T00:00:00Z", "active": 1}
        container = job["spec"]["template"]["spec"]["containers"][0]
        given = {item["name"]: item["value"] for item in container["env"]}
        given["RHSTUDY_CACHE"] = self._environment["RHSTUDY_CACHE"]  # where the claim is mounted
        done = subprocess.run(
            container["command"], cwd=self._image / "mlflow-project-docker-build-context",
            env={**self._environment, **given}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.outputs[name] = done.stdout + done.stderr
        kind = "Failed" if done.returncode else "Complete"
        condition = {"type": kind, "status": "True", "message": f"exit code {done.returncode}"}
        job["status"] = {"startTime": "2026-01-01T00:00:00Z", "conditions": [condition]}
