from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rhstudy.tracking import environment


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", "-A")
    git(folder.parent, "commit", "-qm", "first")
    return folder


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RHSTUDY_GIT_COMMIT", raising=False)
    monkeypatch.delenv("RHSTUDY_GIT_DIRTY", raising=False)
    environment.git_tags.cache_clear()


def test_a_clean_checkout(package: Path) -> None:
    commit = git(package, "rev-parse", "HEAD")
    assert environment.git_tags(package) == {
        "rhstudy.git_commit": commit,
        "mlflow.source.git.commit": commit,
        "rhstudy.git_dirty": "false",
    }


@pytest.mark.parametrize(
    ("name", "dirty"), [("package/__init__.py", "true"), ("package/new.py", "true"), ("notes.txt", "false")]
)
def test_what_makes_a_checkout_dirty(package: Path, name: str, dirty: str) -> None:
    (package.parent / name).write_text("changed")
    assert environment.git_tags(package)["rhstudy.git_dirty"] == dirty


def test_installed_inside_another_projects_checkout_is_unknown(package: Path) -> None:
    installed = package.parent / "venv" / "rhstudy"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    unknown = {"rhstudy.git_commit": "unknown", "rhstudy.git_dirty": "unknown"}
    assert environment.git_tags(installed) == unknown


def test_outside_any_checkout_is_unknown(tmp_path: Path) -> None:
    assert environment.git_tags(tmp_path)["rhstudy.git_dirty"] == "unknown"


@pytest.mark.parametrize(
    ("dirty", "told"), [("true", "true"), ("false", "false"), ("", "unknown"), ("maybe", "unknown")]
)
def test_an_image_tells_what_it_was_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dirty: str, told: str
) -> None:
    monkeypatch.setenv("RHSTUDY_GIT_COMMIT", "c0ffee")
    monkeypatch.setenv("RHSTUDY_GIT_DIRTY", dirty)
    assert environment.git_tags(tmp_path) == {
        "rhstudy.git_commit": "c0ffee",
        "mlflow.source.git.commit": "c0ffee",
        "rhstudy.git_dirty": told,
    }


def test_a_checkout_is_believed_before_the_image(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHSTUDY_GIT_COMMIT", "c0ffee")
    assert environment.git_tags(package)["rhstudy.git_commit"] == git(package, "rev-parse", "HEAD")


def test_a_login_on_the_command_line_is_no_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["rhstudy", "study", "--tracking.uri", "http://ada:sesame@host"])
    assert environment.environment_tags()["rhstudy.command"] == "rhstudy study --tracking.uri http://***@host"


def test_tags_are_text_and_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package-zz"))
    tags = environment.environment_tags()
    assert tags["rhstudy.version.numpy"] == np.__version__
    assert tags["rhstudy.version.no-such-package-zz"] == "not installed"
    assert int(tags["rhstudy.cpu_cores"]) >= 1
    assert int(tags["rhstudy.ram_bytes"]) > 1e8
    assert all(isinstance(value, str) for value in tags.values())


def test_nothing_heavy_is_imported() -> None:
    code = """
import sys
from rhstudy.tracking import environment, folder_recorder, groups, import_runs, opening, references, stage_run
environment.environment_tags(), environment.memory_peaks(), environment.reset_gpu_peak()
print([name for name in ("mlflow", "torch", "transformers", "psutil", "matplotlib") if name in sys.modules])
"""
    repo = Path(environment.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repo)
    assert done.stdout.strip() == "[]"


class FakeCuda:
    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.resets = 0

    def is_available(self) -> bool:
        return bool(self.names)

    is_initialized = is_available

    def device_count(self) -> int:
        return len(self.names)

    def get_device_name(self, index: int) -> str:
        return self.names[index]

    def max_memory_allocated(self) -> int:
        return 123

    def reset_peak_memory_stats(self) -> None:
        self.resets += 1


class FakeTorch:
    def __init__(self, *names: str) -> None:
        self.cuda = FakeCuda(list(names))


@pytest.mark.parametrize(("names", "said"), [(("H200", "H200"), "H200, H200"), ((), "none")])
def test_gpus_are_named_when_torch_is_loaded(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], said: str
) -> None:
    torch = FakeTorch(*names)
    monkeypatch.setitem(sys.modules, "torch", torch)
    environment.reset_gpu_peak()
    assert environment.gpu_tags() == {"rhstudy.gpu": said}
    assert ("peak_gpu_bytes" in environment.memory_peaks()) is bool(names)
    assert torch.cuda.resets == bool(names)
