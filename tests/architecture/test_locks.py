"""The lock files: every dependency but torch, in its range, with hashes, and nothing of the machine that made them."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from source import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WANTED = {
    "requirements.lock": PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cluster"],
    "requirements-dev.lock": PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"],
}


def locked(name: str) -> dict[str, set[str]]:
    """Package -> locked versions (several where Python versions differ)."""
    found: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE):
        found.setdefault(canonicalize_name(package), set()).add(version)
    return found


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_holds_every_dependency_in_its_range_but_torch(name: str) -> None:
    versions = locked(name)
    for requirement in map(Requirement, WANTED[name]):
        if requirement.name != "torch":
            found = versions[canonicalize_name(requirement.name)]
            assert all(requirement.specifier.contains(version) for version in found), requirement
    assert not [package for package in versions if re.match(r"(torch|triton|nvidia-|cuda-)", package)]


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_has_hashes_and_no_places(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "uv pip compile pyproject.toml" in text.splitlines()[1]
    assert text.count("--hash=sha256:") > len(locked(name))
    assert not re.findall(r"https?://|file:|--index|--extra-index|--find-links", text)
    packages = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert not [package.split()[0] for package in packages if "--hash=sha256:" not in package]


def test_the_locks_agree() -> None:
    runtime, develop = locked("requirements.lock"), locked("requirements-dev.lock")
    assert {package: develop.get(package) for package in runtime} == runtime
