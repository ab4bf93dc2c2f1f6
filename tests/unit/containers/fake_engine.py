"""A Docker engine that runs nothing: it remembers what it was asked for and answers as it was told to."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import docker
import requests
from docker.errors import APIError, ImageNotFound, NotFound

Chunk = tuple[bytes | None, bytes | None]


@dataclass
class FakeContainer:
    """What `containers.create` gives."""

    engine: FakeEngine
    asked: Mapping[str, Any] = field(default_factory=dict)
    status: str = "created"
    labels: Mapping[str, str] = field(default_factory=dict)
    id: str = "c0ffee" * 8
    attrs: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.calls.append("start")
        if self.engine.refuses_to_start:
            raise APIError("500", explanation=self.engine.refuses_to_start)
        self.engine.does(self)

    def stop(self, timeout: int) -> None:
        self.calls.append(f"stop {timeout}")

    def wait(self, timeout: int) -> None:
        self.calls.append("wait")

    def reload(self) -> None:
        self.attrs["State"] = {"ExitCode": self.engine.exit_code, "OOMKilled": self.engine.out_of_memory}

    def logs(self, stream: bool = False, **options: Any) -> Iterator[bytes] | bytes:
        if not stream:
            return b"".join(out for out, _ in self.engine.later_chunks if out)
        self.calls.append("logs")
        return iter([out or err or b"" for out, err in self.engine.later_chunks])

    def stats(self, **options: Any) -> Iterator[Mapping[str, Any]]:
        yield from self.engine.samples

    def remove(self, force: bool = False) -> None:
        self.calls.append("remove")

    def get_archive(self, path: str) -> tuple[list[bytes], Mapping[str, Any]]:
        if not self.engine.files:
            raise NotFound(f"no {path}")
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in self.engine.files.items():
                entry = tarfile.TarInfo(f"folder/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return [stream.getvalue()[:700], stream.getvalue()[700:]], {}


@dataclass
class FakeImage:
    """What `images.get` gives."""

    id: str = "sha256:1mage"
    digests: tuple[str, ...] = ()
    tags: list[str] = field(default_factory=list)

    @property
    def attrs(self) -> Mapping[str, Any]:
        return {"Size": 2_000_000_000, "RepoDigests": list(self.digests)}

    def tag(self, repository: str, tag: str) -> None:
        self.tags.append(f"{repository}:{tag}")


class FakeImages:
    """`client.images`."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def list(self, filters: Mapping[str, str]) -> list[FakeImage]:
        label = filters["label"].partition("=")[2]
        own = [self._engine.labelled[label]] if label in self._engine.labelled else []
        return [*self._engine.derived, *own]

    def get(self, name: str) -> FakeImage:
        if name not in self._engine.named:
            raise ImageNotFound(f"no {name}")
        return self._engine.named[name]

    def pull(self, repository: str, tag: str) -> FakeImage:
        self._engine.pulled.append((repository, tag))
        if self._engine.refuses_to_pull:
            raise APIError("404", explanation=self._engine.refuses_to_pull)
        return FakeImage(digests=(f"{repository}@sha256:abc",))


class FakeContainers:
    """`client.containers`."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def create(self, image: str, command: Any = None, **asked: Any) -> FakeContainer:
        if self._engine.refuses_to_create:
            raise APIError("400", explanation=self._engine.refuses_to_create)
        made = FakeContainer(
            self._engine, {"image": image, "command": command, **asked}, labels=asked.get("labels", {})
        )
        self._engine.made.append(made)
        return made

    def list(self, **options: Any) -> list[FakeContainer]:
        if self._engine.is_away:
            raise ConnectionError("gone")
        if self._engine.refuses_to_list:
            raise APIError("500", explanation=self._engine.refuses_to_list)
        assert options == {"all": True, "filters": {"label": "rhstudy.launch"}, "ignore_removed": True}
        return self._engine.known


@dataclass
class FakeEngine(docker.DockerClient):  # type: ignore[misc]
    """A client of it; a `DockerClient` so that signatures hold, of which nothing is used."""

    base_url: str = "http+docker://fake"
    security: tuple[str, ...] = ()
    system: str = "Debian GNU/Linux 12"
    is_away: bool = False
    exit_code: int = 0
    out_of_memory: bool = False
    chunks: list[Chunk | Exception | BaseException] = field(default_factory=list)
    later_chunks: list[Chunk] = field(default_factory=list)
    samples: list[Mapping[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    build_stream: list[Mapping[str, Any]] = field(default_factory=list)
    labelled: dict[str, FakeImage] = field(default_factory=dict)
    derived: list[FakeImage] = field(default_factory=list)
    named: dict[str, FakeImage] = field(default_factory=dict)
    known: list[FakeContainer] = field(default_factory=list)
    refuses_to_create: str = ""
    refuses_to_start: str = ""
    refuses_to_pull: str = ""
    refuses_to_list: str = ""
    does: Callable[[FakeContainer], None] = lambda container: None
    made: list[FakeContainer] = field(default_factory=list)
    pulled: list[tuple[str, str]] = field(default_factory=list)
    built: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def images(self) -> FakeImages:
        return FakeImages(self)

    @property
    def containers(self) -> FakeContainers:
        return FakeContainers(self)

    @property
    def api(self) -> FakeEngine:
        return self

    def get(self, url: str, timeout: float) -> requests.Response:
        assert url == f"{self.base_url}/_ping"
        if self.is_away:
            raise ConnectionError("gone")
        answer = requests.Response()
        answer.status_code = 200
        return answer

    def info(self) -> Mapping[str, Any]:
        return {"SecurityOptions": list(self.security), "OperatingSystem": self.system, "ServerVersion": "20.10"}

    def build(self, **asked: Any) -> Iterator[Mapping[str, Any]]:
        self.built.append(asked)
        yield from self.build_stream
        self.named[asked["tag"]] = FakeImage()

    def attach(self, container_id: str, **options: Any) -> Iterator[Chunk]:
        for item in self.chunks:
            if isinstance(item, BaseException):
                raise item
            yield item
