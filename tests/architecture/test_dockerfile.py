"""The Dockerfile, its build context and what names its image: pinned, without root, secrets or BuildKit's own words."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from source import ROOT

from rhstudy import __version__
from rhstudy.containers.image import BILL, BILL_FOLDER, GPU_VARIANT, with_cache_mounts

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
CODE = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ARGS = dict(re.findall(r"^ARG (\w+)=(\S+)$", CODE, re.MULTILINE))


def test_versions_agree() -> None:
    mlproject = yaml.safe_load((ROOT / "mlproject").read_text(encoding="utf-8"))
    assert PROJECT["project"]["version"] == __version__
    assert mlproject["docker_env"]["image"] == f"rhstudy:{__version__}"
    assert f'org.opencontainers.image.version="{__version__}"' in CODE
    assert f'org.opencontainers.image.licenses="{PROJECT["project"]["license"]}"' in CODE
    assert set(re.findall(r"-t rhstudy:(\S+)", TEXT)) == {__version__}


def test_torch_is_the_version_the_locks_were_made_with() -> None:
    (wanted,) = (Requirement(item) for item in PROJECT["project"]["dependencies"] if item.startswith("torch"))
    assert f"torch=={ARGS['TORCH_VERSION']}" in PROJECT["tool"]["uv"]["constraint-dependencies"]
    assert wanted.specifier.contains(ARGS["TORCH_VERSION"])
    assert set(re.findall(r"^ARG VARIANT=(\S+)$", CODE, re.MULTILINE)) == {GPU_VARIANT}


def test_nothing_is_whatever_is_newest() -> None:
    assert "latest" not in CODE
    assert ":" in ARGS["BASE_IMAGE"]
    installs = [line for line in CODE.splitlines() if re.search(r"pip\d? install ", line)]
    assert installs
    pinned = ("--require-hashes", "--no-index", '"torch==$TORCH_VERSION"')
    assert not [line for line in installs if not any(word in line for word in pinned)]


def test_it_builds_without_buildkit() -> None:
    assert "--mount" not in CODE
    assert "# syntax" not in TEXT
    assert "<<" not in CODE
    assert not re.search(r"^(COPY|ADD) .*--(chmod|link|exclude|parents)", CODE, re.MULTILINE)


def test_every_cache_line_is_of_a_step() -> None:
    marked = re.findall(r"^# cache: \S+\n(\w+)", TEXT, re.MULTILINE)
    assert marked
    assert set(marked) == {"RUN"}
    assert TEXT.count("\n# cache:") == len(marked)
    assert with_cache_mounts(TEXT).count("RUN --mount=type=cache,target=/root/.cache/pip ") == len(marked)
    indexed = re.findall(r"^(?:# cache: .*\n)?RUN (?:.*\\\n)*?.*pip install (?!.*--no-index).*", TEXT, re.MULTILINE)
    assert all(step.startswith("# cache: ") for step in indexed)


def test_every_shell_step_stops_at_its_first_failure() -> None:
    steps = re.findall(r"^RUN (.*)", CODE, re.MULTILINE)
    assert not [step for step in steps if not step.startswith("set -eu;")]


def test_it_does_not_run_as_root() -> None:
    last = CODE.split("\nFROM ")[-1]
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE) == ["1000:1000"]


def test_labels_and_commit_come_last_so_that_a_commit_rebuilds_nothing() -> None:
    assert not re.search(r"^(RUN|COPY|ADD) ", CODE.partition("ARG GIT_COMMIT")[2], re.MULTILINE)


def test_the_bill_is_where_it_is_looked_for() -> None:
    assert f"COPY --from=wheel /bill {BILL_FOLDER}" in CODE
    assert set(re.findall(r"/bill/([\w.-]+)", CODE)) == set(BILL)


def test_the_context_is_a_list_of_what_may_come_in() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line]
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {line[1:] for line in rules if line.startswith("!")}
    assert not allowed & {"*", "**", ".", ".git", ".env", "shared"}
    assert not [name for name in allowed if name.startswith(".")]
    assert {line for line in rules[1:] if not line.startswith("!")} == {"**/__pycache__", "**/*.pyc"}
    copied = {
        word.rstrip("/")
        for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", CODE, re.MULTILINE)
        for word in sources.split()
    }
    patterns = {re.sub(r"\[(.)\]", r"\1", word) for word in copied} - {"${LOCK}"}
    locks = {word for word in patterns if re.fullmatch(r"requirements.*\.lock", word)}
    assert patterns - locks <= allowed


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore", "mlproject"])
def test_there_are_no_secrets(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"(?i)(password|secret|token|api_?key|private key)\s*[=:]", text)
    assert not re.search(r"https?://[^/\s]*@", text)
    assert not re.search(r"^(ARG|ENV) .*(PROXY|proxy|INDEX_URL|TRUSTED|CERT)", text, re.MULTILINE)
