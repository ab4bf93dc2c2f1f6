"""What a machine without the whole environment can still do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from source import ROOT


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_HUB_")}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'mlflow', 'numpy', 'pandas', 'matplotlib', 'tyro'}"
    done = _python("-c", f"import sys, rhstudy; print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


def test_asking_for_version_or_usage_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'mlflow', 'numpy', 'pandas', 'matplotlib', 'tyro'}"
    script = f"import sys; from rhstudy import cli; cli.main(sys.argv[1:]); print(sorted({heavy} & set(sys.modules)))"
    for arguments in (["--version"], ["--help"]):
        done = _python("-c", script, *arguments)
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_command_line_shows_no_bars_of_transformers() -> None:
    script = "from rhstudy import cli; cli.main(['--version']); from transformers.utils import logging; "
    done = _python("-c", f"{script} print(logging.is_progress_bar_enabled())")
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_training_processes_import_neither_a_recorder_nor_what_reports() -> None:
    heavy = "{'mlflow', 'optuna', 'datasets', 'pandas', 'matplotlib', 'tyro'}"
    names = "agent, rhstudy.training.worker, rhstudy.training.sharded"
    done = _python("-c", f"import sys, rhstudy.training.{names}; print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr
    own = "[name for name in sys.modules if name.startswith(('rhstudy.tracking', 'rhstudy.stages'))]"
    assert _python("-c", f"import sys, rhstudy.training.{names}; print({own})").stdout == "[]\n"


def test_data_and_statistics_run_without_torch() -> None:
    names = (
        "configs",
        "types",
        "data.build",
        "data.recipes",
        "heads.sets",
        "stats.analysis",
        "stats.gap_share",
        "stats.necessity",
        "stats.tables",
        "figures",
    )
    lines = "; ".join(f"import rhstudy.{name}" for name in names)
    done = _python("-c", f"import sys; {lines}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


def test_stages_run_with_torch_transformers_and_safetensors_alone(world: Path, tmp_path: Path) -> None:
    done = _python(str(Path(__file__).with_name("bare_stages.py")), str(world), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["statuses"] == ["FINISHED"] * 6
    assert facts["loaded"] == []
    absent = "none: matplotlib is not installed"
    assert facts["figures"] == ["", absent, absent, "", "", ""]
    assert facts["necessity"] == "none: scipy is not installed; `rhstudy report` makes it"
    assert facts["f1_baseline"] is not None
    assert facts["patching"] == "none: scipy is not installed; `rhstudy report` makes it"
    assert facts["f1_recipient"] is not None
