"""The bug report: complete, one JSON line, and without a single secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from rhstudy import cli, environment
from rhstudy.configs import TrackingConfig

ROOT = Path(__file__).parents[2]
PARTS = {"rhstudy", "python", "versions", "hardware", "gpus", "torch", "docker", "store", "cache", "variables"}


@pytest.fixture(autouse=True)
def _loggers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_quiet_libraries", lambda: None)


def facts(tmp_path: Path, **tracking: str) -> dict[str, object]:
    return environment.environment_facts(TrackingConfig(work_dir=str(tmp_path / "work"), **tracking))


def test_it_prints_a_table_and_one_json_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli.main(["environment"]) == 0
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    found = json.loads(line)
    assert set(found) == PARTS
    assert found["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["numpy"][0].isdigit()
    assert int(found["hardware"]["ram_bytes"]) > 1e8
    assert found["torch"]["threads"] >= 1
    assert found["cache"]["free_bytes"] > 0
    assert "hardware cpu_cores" in printed.err
    # Looking makes nothing.
    assert found["store"]["opens"] == "not made yet"
    assert not list(tmp_path.iterdir())


def test_no_secret_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:sesame@127.0.0.1:9")
    monkeypatch.setenv("KUBE_MLFLOW_TRACKING_URI", "http://ada:sesame@mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "sesame-user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "sesame-password")
    monkeypatch.setenv("RHSTUDY_API_TOKEN", "sesame-token")
    monkeypatch.setenv("HF_TOKEN", "sesame-hub")
    assert cli.main(["environment", "--tracking.work_dir", str(tmp_path / "work")]) == 0
    printed = capsys.readouterr()
    assert "sesame" not in printed.out + printed.err
    found = json.loads(printed.out)
    assert found["store"]["place"] == "http://***@127.0.0.1:9"
    assert found["store"]["opens"].startswith("no: ")
    assert found["variables"]["MLFLOW_TRACKING_URI"] == "http://***@127.0.0.1:9"
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_USERNAME", "RHSTUDY_API_TOKEN", "HF_TOKEN"):
        assert found["variables"][name] == "set"


def test_it_works_without_mlflow_torch_and_tyro(tmp_path: Path) -> None:
    hide = "import sys; sys.modules.update(dict.fromkeys(['mlflow', 'torch', 'transformers', 'tyro', 'docker']))"
    script = f"{hide}; from rhstudy import cli; sys.exit(cli.main(['environment']))"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RHSTUDY_"))}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={**kept, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["torch"].startswith("not installed")
    assert found["store"]["opens"].startswith("no: ")


def test_the_store_is_opened_to_see(tmp_path: Path) -> None:
    from rhstudy.tracking.mlflow_store import make_database

    make_database(tmp_path / "mlflow.db", tmp_path / "mlartifacts")
    store = facts(tmp_path, uri=f"sqlite:///{tmp_path}/mlflow.db")["store"]
    assert store == {"recorder": "mlflow", "place": f"sqlite:///{tmp_path}/mlflow.db", "opens": "yes"}
    (tmp_path / "broken.db").write_text("no database")
    broken = facts(tmp_path, uri=f"sqlite:///{tmp_path}/broken.db")["store"]
    assert isinstance(broken, dict)
    assert broken["opens"].startswith("no: ")
    assert facts(tmp_path, recorder="folder", folder=str(tmp_path))["store"] == {
        "recorder": "folder", "place": str(tmp_path), "opens": "exists",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "8589934592\n"}, "8589934592"),
        ({"memory.max": "max\n"}, "none"),
        ({"memory/memory.limit_in_bytes": "4294967296\n"}, "4294967296"),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, "none"),
        ({}, "none"),
    ],
)
def test_the_memory_limit_of_a_container(tmp_path: Path, files: dict[str, str], limit: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert environment.memory_limit(tmp_path) == limit


def test_gpus_are_what_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "NVIDIA H100 80GB HBM3, 570.86, 81559 MiB, 4 MiB"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    gpu = {"name": "NVIDIA H100 80GB HBM3", "driver": "570.86", "memory": "81559 MiB", "used": "4 MiB"}
    assert facts(tmp_path)["gpus"] == {"0": gpu}
    program.write_text("#!/bin/sh\necho no devices; exit 9\n")
    assert facts(tmp_path)["gpus"] == "nvidia-smi failed: no devices"


def test_the_engine_is_asked_through_the_module_for_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = types.ModuleType("rhstudy.containers.engine")
    monkeypatch.setitem(sys.modules, "rhstudy.containers", types.ModuleType("rhstudy.containers"))
    monkeypatch.setitem(sys.modules, "rhstudy.containers.engine", engine)
    assert facts(tmp_path)["docker"] == "not checked"
    monkeypatch.setattr(engine, "facts", lambda: {"version": "27.0"}, raising=False)
    assert facts(tmp_path)["docker"] == {"version": "27.0"}

    def broken() -> None:
        raise RuntimeError("engine at http://ada:sesame@host is gone")

    monkeypatch.setattr(engine, "facts", broken)
    assert facts(tmp_path)["docker"] == "RuntimeError: engine at http://***@host is gone"
