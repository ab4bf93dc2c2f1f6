"""The command line's flags for containers, and the flag for launchers whose parameters always have a value."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rhstudy
from rhstudy import cli
from rhstudy.cli import without_empty
from rhstudy.containers.config import ContainerConfig


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def facts(self) -> dict[str, Any]:
        return dict(json.loads(self.out.splitlines()[-1]))


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs `rhstudy` in this process, in an empty folder, with no engine to be found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    # It quiets other libraries' loggers, which is for a process of its own and not for the tests after this one.
    monkeypatch.setattr(cli, "_quiet_libraries", lambda: None)

    def run(*arguments: str) -> Said:
        code = cli.main(arguments)
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run


DRY = ("make-data", "--data.train_file", "rows.jsonl", "--dry-run")


def test_container_flags_are_no_part_of_the_config(say: Callable[..., Said]) -> None:
    plain = say(*DRY)
    assert plain.code == 0, plain.err
    for flags in (
        ("--runtime", "docker"),
        ("--runtime=host",),
        ("--backend-config", '{"variant": "cpu"}'),
        ('--backend_config={"gpus": "0,1"}', "--runtime", "auto"),
    ):
        assert say(*DRY, *flags).facts == plain.facts


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--runtime",), "--runtime must have a value, got <nothing>. See rhstudy --help"),
        (("--backend-config",), "--backend-config must have a value, got <nothing>. See rhstudy --help"),
        (("--runtime", "podman"), "runtime must be one of auto, docker, host, got 'podman'"),
        (("--runtime", "--dry-run"), "--runtime must have a value, got <nothing>"),
        (("--backend-config", "{"), "backend config must be readable JSON, got '{'. Give a JSON file or text such as"),
        (("--backend-config", "none.json"), "backend config must be readable JSON, got 'none.json'"),
        (("--backend-config={}", "--runtime=x"), "runtime must be one of auto, docker, host, got 'x'"),
        (("--backend-config", '{"imagee": "a"}'), "imagee must be a known key, got <unknown> (backend config)"),
    ],
)
def test_wrong_flags_are_exit_code_2(say: Callable[..., Said], flags: tuple[str, ...], said: str) -> None:
    heard = say(*DRY, *flags)
    assert heard.code == 2
    assert f"rhstudy: {said}" in heard.err


def test_without_an_engine_docker_is_exit_code_1_and_nothing_is_done(say: Callable[..., Said], tmp_path: Path) -> None:
    heard = say("make-data", "--data.train_file", "rows.jsonl", "--tracking.recorder", "folder", "--runtime", "docker")
    assert heard.code == 1
    assert "rhstudy: Docker engine must answer, got <no answer at unix://" in heard.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "project folder must hold Dockerfile and rhstudy/"),
        (("--variant", "cuda"), 2, "variant must be auto, cpu or cuNNN, got 'cuda'"),
        (("--backend-config", "{"), 2, "backend config must be readable JSON"),
        (("--backend-config", '{"image": "somebodys:image"}'), 1, "Docker engine must answer"),
        (("--no-such-flag",), 2, "no-such-flag"),
    ],
)
def test_image_outside_a_checkout(
    say: Callable[..., Said],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(rhstudy, "__file__", str(tmp_path / "site-packages" / "rhstudy" / "__init__.py"))
    heard = say("image", *arguments)
    assert heard.code == code
    assert said in heard.err + heard.out


def test_image_in_a_checkout_needs_an_engine(say: Callable[..., Said]) -> None:
    heard = say("image", "--variant", "cpu")
    assert heard.code == 1
    assert "rhstudy: Docker engine must answer" in heard.err


def test_an_unknown_command_is_told_of_all_of_them(say: Callable[..., Said]) -> None:
    heard = say("images")
    assert heard.code == 2
    assert "image, got 'images'. See rhstudy --help" in heard.err


def test_empty_arguments_are_skipped_when_asked_to(say: Callable[..., Said]) -> None:
    full = say("--skip-empty", "make-data", "", "--data.train_file", "rows.jsonl", "--model.name", "", "--dry-run")
    assert full.code == 0, full.err
    assert full.facts == say(*DRY).facts
    assert say("make-data", "", "--dry-run").code == 2
    assert say("--skip-empty").code == 2
    assert say("--skip-empty", "--version").out.strip() == rhstudy.__version__


@pytest.mark.parametrize(
    ("given_arguments", "left"),
    [
        (["study", ""], ["study"]),
        (["detect", "", "--data", "x", "--checkpoint", ""], ["detect", "--data", "x"]),
        (["detect", "--a", "", "--b", ""], ["detect"]),
        (["detect", "--a=1", "", "--b", "2"], ["detect", "--a=1", "--b", "2"]),
        (["detect", "--a", "-", ""], ["detect", "--a", "-"]),
        ([""], []),
    ],
)
def test_which_arguments_are_skipped(given_arguments: list[str], left: list[str]) -> None:
    assert without_empty(given_arguments) == left


@given(
    st.lists(st.tuples(st.from_regex(r"--[a-z]{1,5}", fullmatch=True), st.from_regex(r"[a-z ]{0,3}", fullmatch=True)))
)
def test_flags_with_a_value_stay_in_order_and_those_without_go(pairs: list[tuple[str, str]]) -> None:
    given_arguments = [item for pair in pairs for item in pair]
    assert without_empty(given_arguments) == [item for flag, value in pairs if value for item in (flag, value)]


def test_the_variant_of_an_image_may_come_from_the_backend_config(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def facts(config: ContainerConfig, output: str) -> dict[str, str]:
        heard.append(config.variant)
        return {}

    monkeypatch.setattr("rhstudy.containers.image.image_facts", facts)
    say("image", "--backend-config", '{"variant": "cu130"}')
    say("image", "--backend-config", '{"variant": "cu130"}', "--variant", "cpu")
    say("image")
    assert heard == ["cu130", "cpu", "auto"]
