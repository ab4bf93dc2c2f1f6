"""The rules of the house that no linter knows: sizes, names, doors to the outside, what lies at the top level."""

from __future__ import annotations

import ast
import statistics
import subprocess
from pathlib import Path

import pytest
from source import PACKAGE, ROOT, functions, imports, modules, tree

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
MAX_MEDIAN_LINES = 12
MAX_P95_LINES = 40
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager"}
GLOBAL_SEEDING = {"manual_seed", "manual_seed_all", "seed", "set_seed", "seed_everything"}
SEED_OWNERS = ("np.random", "numpy.random", "random", "torch", "torch.random", "torch.cuda", "transformers")
DOORS = {"mlflow": ("tracking", "containers"), "docker": ("containers",), "optuna": ("sweep",)}
TOP_LEVEL = {"pyproject.toml", "README.md", "Dockerfile", "mlproject", "rhstudy", "sweeps", "tests", "LICENSE"}


def test_functions_are_short(record_property: pytest.RecordProperty) -> None:
    lengths = sorted(function.num_lines for function in functions())
    median, p95 = statistics.median(lengths), lengths[int(0.95 * (len(lengths) - 1))]
    print(f"{len(lengths)} functions: median {median}, p95 {p95}, longest {lengths[-1]} lines")
    too_long = [f"{item.where}: {item.num_lines} lines" for item in functions() if item.num_lines > MAX_FUNCTION_LINES]
    assert not too_long
    assert median <= MAX_MEDIAN_LINES
    assert p95 <= MAX_P95_LINES


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules()}
    assert not {name: length for name, length in lengths.items() if length > MAX_FILE_LINES}


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert not [str(path) for path in modules() if path.stem in FORBIDDEN_NAMES or path.parent.name in FORBIDDEN_NAMES]


def test_every_module_has_a_docstring() -> None:
    assert not [str(path) for path in modules() if not ast.get_docstring(tree(path))]


def test_the_package_asserts_nothing() -> None:
    found = [
        f"{path}:{node.lineno}" for path in modules() for node in ast.walk(tree(path)) if isinstance(node, ast.Assert)
    ]
    assert not found


def _is_global_seeding(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    return node.func.attr in GLOBAL_SEEDING and ast.unparse(node.func.value) in SEED_OWNERS


@pytest.mark.parametrize("call", ["np.random.seed(0)", "torch.manual_seed(1)", "random.seed(2)"])
def test_global_seeding_is_recognised(call: str) -> None:
    assert any(map(_is_global_seeding, ast.walk(ast.parse(call))))
    assert not any(map(_is_global_seeding, ast.walk(ast.parse("torch.Generator().manual_seed(3)"))))


def test_nothing_seeds_globally() -> None:
    found = [f"{path}:{node.lineno}" for path in modules() for node in ast.walk(tree(path)) if _is_global_seeding(node)]
    assert not found


@pytest.mark.parametrize("library", DOORS)
def test_each_outside_system_has_one_door(library: str) -> None:
    strangers = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules()
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in DOORS[library]
        for line, name in imports(path)
        if name.partition(".")[0] == library
    ]
    assert not strangers


def test_top_level_holds_only_what_was_agreed() -> None:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("not a git checkout: build outputs cannot be told from sources")
    entries = {Path(line).parts[0] for line in done.stdout.splitlines()}
    assert not {name for name in entries - TOP_LEVEL if not name.startswith(".") and not name.endswith(".lock")}
