"""The image itself: size, users, contents, bill of materials."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import tarfile
import tempfile
from pathlib import Path

import docker
import pytest
from commands import ROOT
from projects import SETTINGS

import rhstudy
from rhstudy.containers.config import ContainerConfig
from rhstudy.containers.image import (
    BILL,
    INPUTS_LABEL,
    Image,
    build_arguments,
    ensure_image,
    export_bill,
    inputs_digest,
)

CPU_LIMIT_BYTES = 2.5e9
EXPECTED_REST = (
    # `python3 -m venv` compiles its pip with the time of installation, and tests are not compiled again.
    r"opt/venv/lib/python3\.\d+/site-packages/pip/_vendor/\w+/tests/__pycache__/\w+\.cpython-\d+\.pyc",
)
"""Patterns of files that differ between two builds, each with its reason."""


def shell(engine: docker.DockerClient, image: Image, script: str, **options: object) -> str:
    output = engine.containers.run(
        image.image_id, ["sh", "-ec", script], remove=True, network_mode="host", stderr=True, **options
    )
    return str(output.decode())


def test_the_cpu_image_is_small(image: Image) -> None:
    if SETTINGS["variant"] != "cpu":
        pytest.skip("the limit is the CPU image's")
    print(f"\nimage {image.name}: {image.size_bytes / 1e9:.2f} GB")
    assert image.size_bytes <= CPU_LIMIT_BYTES


def test_it_is_built_once_for_the_same_inputs(
    engine: docker.DockerClient, image: Image, config: ContainerConfig
) -> None:
    again = ensure_image(engine, ROOT, config)
    assert not again.built
    assert again.image_id == image.image_id
    labels = engine.images.get(image.image_id).labels
    assert labels[INPUTS_LABEL] == inputs_digest(ROOT, config)
    assert labels["org.opencontainers.image.version"] == rhstudy.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", labels["org.opencontainers.image.revision"])
    assert labels["rhstudy.git_dirty"] in ("true", "false", "unknown")


@pytest.mark.parametrize("user", ["", "0:0", "12345:54321"])
def test_any_user_can_work_in_it(engine: docker.DockerClient, image: Image, user: str) -> None:
    script = """
        id -u
        rhstudy --version
        for folder in "$HOME" "$RHSTUDY_CACHE" /work /mlflow/tmp /tmp; do touch "$folder/mine"; done
        echo 'int main(void) { return 0; }' > "$HOME/a.c" && gcc -o "$HOME/a" "$HOME/a.c" && "$HOME/a"
        python -c 'import getpass, matplotlib.pyplot, torch; print(getpass.getuser(), torch.zeros(1).item())'
        test -e "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"
    """
    lines = shell(engine, image, script, user=user).splitlines()
    assert lines == [user.partition(":")[0] or "1000", rhstudy.__version__, "rhstudy 0.0"]


@pytest.mark.skipif(
    "RHSTUDY_TEST_REBUILD" not in os.environ, reason="builds twice from nothing: RHSTUDY_TEST_REBUILD=1"
)
@pytest.mark.timeout(3600)
def test_two_builds_from_nothing_give_the_same_files(engine: docker.DockerClient, config: ContainerConfig) -> None:
    trees = []
    for number in (1, 2):
        stream = engine.api.build(
            path=str(ROOT), tag=f"rhstudy-rebuild:{number}", buildargs=build_arguments(ROOT, config),
            network_mode=config.build_network or None, nocache=True, rm=True, decode=True,
        )  # fmt: skip
        assert not [entry["error"] for entry in stream if "error" in entry]
        trees.append(file_tree(engine, f"rhstudy-rebuild:{number}"))
    first, second = trees
    different = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    print(f"\n{len(first)} files, {len(different)} different: {sorted(different)[:40]}")
    assert {name for name in different if not any(re.fullmatch(rest, name) for rest in EXPECTED_REST)} == set()


def file_tree(engine: docker.DockerClient, name: str) -> dict[str, tuple[object, ...]]:
    """Path -> kind, mode, owner, link and SHA-256 of every file of an image; times are not compared."""
    container = engine.containers.create(name)
    found = {}
    try:
        with tempfile.TemporaryFile() as file:
            for chunk in container.export():
                file.write(chunk)
            file.seek(0)
            with tarfile.open(fileobj=file) as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isfile() else None
                    sha = hashlib.sha256(content.read()).hexdigest() if content else ""
                    found[member.name] = (member.type, member.mode, member.uid, member.gid, member.linkname, sha)
    finally:
        container.remove()
    return found


def test_it_holds_no_history_stores_or_credentials(engine: docker.DockerClient, image: Image) -> None:
    found = shell(engine, image, "ls -A /work")
    assert set(found.split()) == {
        "LICENSE", "README.md", "mlproject", "pyproject.toml", "requirements-dev.lock", "requirements-image.lock",
        "requirements.lock", "sweeps", "tests",
    }  # fmt: skip
    variables = dict(item.split("=", 1) for item in engine.images.get(image.image_id).attrs["Config"]["Env"])
    assert not [name for name in variables if re.search(r"TOKEN|PASSWORD|SECRET|INDEX", name.upper())]
    steps = [layer["CreatedBy"] for layer in engine.images.get(image.image_id).history()]
    assert not [step for step in steps if re.search(r"(?i)(token|password|secret)=\S", step)]


def test_its_bills_of_materials_say_what_is_installed(
    engine: docker.DockerClient, image: Image, tmp_path: Path
) -> None:
    assert set(export_bill(engine, image, tmp_path)) == set(BILL)
    listed = json.loads(shell(engine, image, "pip list --format json 2>/dev/null"))
    installed = {_canonical(item["name"]): item["version"] for item in listed}
    torchs_own = {name for name in installed if re.match(r"nvidia-|cuda-", name)} | {"torch", "triton"}
    bill = json.loads((tmp_path / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    components = {_canonical(item["name"]): item["version"] for item in bill["components"]}
    # The package itself is what the bill is about.
    assert components | {"rhstudy": rhstudy.__version__} == installed
    assert _canonical(bill["metadata"]["component"]["name"]) == "rhstudy"
    with (tmp_path / "licenses.csv").open() as file:
        licences = {_canonical(row["Name"]): row["License"] for row in csv.DictReader(file)}
    assert set(licences) == set(installed)
    assert licences["torch"]
    assert licences["mlflow"].startswith("Apache")
    locked = json.loads((tmp_path / "lock.cdx.json").read_text())["components"]
    # Several versions where Python versions differ.
    pinned = {(_canonical(item["name"]), item["version"]) for item in locked}
    names = {name for name, _ in pinned}
    assert {(name, version) for name, version in installed.items() if name in names} <= pinned
    assert set(installed) - names <= {"rhstudy", "pip", "setuptools"} | torchs_own
    assert all(item["externalReferences"][0]["hashes"] for item in locked)
    facts = json.loads((tmp_path / "image.json").read_text())
    assert facts["id"] == image.image_id


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
