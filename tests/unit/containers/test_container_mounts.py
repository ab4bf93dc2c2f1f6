from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rhstudy.containers.config import ContainerConfig
from rhstudy.containers.mounts import View, is_on_this_machine, view_of
from rhstudy.errors import InputError

HTTP = "http://tracking.example.org:5000"


def view(here: Path, config: ContainerConfig | None = None, **changes: Any) -> View:
    return view_of(config or ContainerConfig(), **{"uri": HTTP, "working_dir": here, **changes})


def places(found: View) -> dict[str, bool]:
    """Path -> read-only, of mounts that lie inside where they lie outside."""
    assert all(mount["Source"] == mount["Target"] and mount["Type"] == "bind" for mount in found.mounts)
    assert len({mount["Target"] for mount in found.mounts}) == len(found.mounts)
    return {mount["Target"]: mount["ReadOnly"] for mount in found.mounts}


def test_working_folder_and_cache_lie_where_they_lie_here_and_can_be_written_to(here: Path, tmp_path: Path) -> None:
    found = view(here)
    assert places(found) == {str(here): False, str(tmp_path / "cache"): False}
    assert (tmp_path / "cache").is_dir()
    assert found.working_dir == str(here)
    assert found.user == f"{os.getuid()}:{os.getgid()}"
    assert found.groups == tuple(os.getgroups())
    assert found.environment["RHSTUDY_CACHE"] == str(tmp_path / "cache")


def test_an_engine_without_root_maps_the_caller_to_root(here: Path) -> None:
    found = view(here, rootless=True)
    assert (found.user, found.groups) == ("0:0", ())


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("sqlite:////{0}/store/mlflow.db", "store"),
        ("sqlite:////{0}/store/mlflow.db?timeout=9", "store"),
        ("sqlite:///../store/mlflow.db", "store"),
        ("file://{0}/runs", "runs"),
        ("file://{0}/my%20runs", "my runs"),
        ("file:../runs", "runs"),
        ("{0}/runs", "runs"),
    ],
)
def test_the_folder_of_a_local_store_is_there(here: Path, tmp_path: Path, uri: str, folder: str) -> None:
    given = uri.format(tmp_path).replace("sqlite://///", "sqlite:////")
    assert places(view(here, uri=given))[str(tmp_path / folder)] is False


def test_a_store_in_the_working_folder_needs_nothing_more_and_is_named_absolutely(here: Path, tmp_path: Path) -> None:
    found = view(here, uri="sqlite:///mlflow.db")
    assert set(places(found)) == {str(here), str(tmp_path / "cache")}
    assert found.environment["MLFLOW_TRACKING_URI"] == f"sqlite:///{here}/mlflow.db"


def test_a_server_needs_no_folder(here: Path, tmp_path: Path) -> None:
    found = view(here)
    assert set(places(found)) == {str(here), str(tmp_path / "cache")}
    assert found.environment["MLFLOW_TRACKING_URI"] == HTTP


def test_nested_folders_are_mounted_once_and_equal_beginnings_are_not_nested(here: Path, tmp_path: Path) -> None:
    written = [here / "a" / "b", tmp_path / "out", tmp_path / "out" / "x", tmp_path / "out2", tmp_path / "out"]
    named = sorted(places(view(here, written=written)))
    assert named == sorted(map(str, (here, tmp_path / "cache", tmp_path / "out", tmp_path / "out2")))
    assert all(folder.is_dir() for folder in written)


def test_a_folder_that_is_a_link_is_there_by_both_names(here: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (here / "mlartifacts").symlink_to(tmp_path / "disk")
    assert places(view(here, written=[here / "mlartifacts"]))[str(tmp_path / "disk")] is False


def files(folder: Path, *names: str) -> list[Path]:
    made = [folder / name for name in names]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x", encoding="utf-8")
    return made


def test_what_the_command_names_can_be_read(here: Path, tmp_path: Path) -> None:
    weights, rows, other = files(tmp_path / "data", "model/weights.bin", "rows.jsonl", "other.jsonl")
    command = ["rhstudy", "detect", "--model.name", str(weights.parent), "--data=../data/rows.jsonl", "--note", "a/b"]
    found = places(view(here, command=command))
    assert found[str(weights.parent)] is True
    assert found[str(rows)] is True
    assert str(other) not in found
    assert len(found) == 4


def test_what_a_config_names_can_be_read_wherever_it_stands_in_it(here: Path, tmp_path: Path) -> None:
    named = files(tmp_path / "data", "a.jsonl", "b.jsonl", "c/d.txt", "e.bin", "f/g.txt")
    (here / "study.toml").write_text(
        f"""
        first = "{named[0]}"
        note = "no/such/file"
        separator = "/"
        lists = [["{named[1]}", "plain"], []]
        number = 3
        [table.deep]
        folder_of = "../data/c"
        [[arms]]
        name = "real"
        file = "{named[3]}"
        [[arms]]
        inline = {{ path = "{named[4].parent}" }}
        """,
        encoding="utf-8",
    )
    found = places(view(here, command=["rhstudy", "study", "study.toml"]))
    wanted = [named[0], named[1], named[2].parent, named[3], named[4].parent]
    assert {path: found.get(str(path)) for path in wanted} == dict.fromkeys(wanted, True)
    assert len(found) == 2 + len(wanted)


def test_the_config_itself_may_lie_elsewhere_and_need_not_be_right(here: Path, tmp_path: Path) -> None:
    (bad,) = files(tmp_path / "configs", "bad.toml")
    assert places(view(here, command=["rhstudy", "study", "../configs/bad.toml", "gone.toml"]))[str(bad)] is True
    bad.write_bytes(b"\xff\xfe")
    assert str(bad) in places(view(here, command=["rhstudy", "study", str(bad)]))


def test_links_lead_somewhere(here: Path, tmp_path: Path) -> None:
    file, folder_file, blob = files(tmp_path / "disk", "rows.jsonl", "models/weights.bin", "blobs/abc")
    (here / "rows").symlink_to(file)
    (here / "models").symlink_to(folder_file.parent)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "weights.bin").symlink_to(blob)
    command = ["rhstudy", "detect", "--data", "rows", "--model.name", "models", "--other", str(tmp_path / "snapshot")]
    found = places(view(here, command=command))
    read = {str(path) for path in (file, folder_file.parent, tmp_path / "snapshot", blob)}
    assert {path for path, read_only in found.items() if read_only} == read


@pytest.mark.parametrize(
    "text", ["x/" * 3000, "a/" + "b" * 300, "~nobody-has-this-name/x", "a\0/b", "one\n/tmp", "/", ""]
)
def test_any_text_may_come_along(here: Path, text: str) -> None:
    (here / "notes.toml").write_text(f"note = {json.dumps(text)}", encoding="utf-8")
    assert len(places(view(here, command=["rhstudy", "study", "notes.toml", "--note", text]))) == 2


@pytest.mark.parametrize("key", ["work_dir", "folder", "cache_dir"])
def test_folders_that_a_stage_writes_to_are_made_and_can_be_written_to(here: Path, tmp_path: Path, key: str) -> None:
    name = key.replace("_", "-")
    (here / "stage.toml").write_text(f'[tracking]\n{name} = "../from toml"\n', encoding="utf-8")
    command = ["rhstudy", "detect", "stage.toml", f"--tracking.{name}", str(tmp_path / "from flag"), "stage.toml"]
    found = places(view(here, command=command))
    for folder in (tmp_path / "from toml", tmp_path / "from flag"):
        assert found[str(folder)] is False
        assert folder.is_dir()
    assert (here / "stage.toml").is_file()


@pytest.mark.parametrize("target", ["/", "/usr", "/opt", "/opt/venv", "/opt/venv/lib", "/etc", "/tmp/../bin", "/root/"])
def test_a_place_that_would_hide_the_image_is_refused(here: Path, target: str) -> None:
    wanted = "mounted folder must lie outside the image's own folders, got .*hide a part of the image"
    with pytest.raises(InputError, match=wanted):
        view(here, ContainerConfig(volumes=(f"{here}:{target}",)))


def test_a_working_folder_that_would_hide_the_image_is_refused() -> None:
    with pytest.raises(InputError, match="must lie outside the image's own folders, got '/'"):
        view(Path("/"))


def test_volumes_are_mounted_as_the_config_says(here: Path, tmp_path: Path) -> None:
    (rows,) = files(tmp_path / "data", "rows.jsonl")
    config = ContainerConfig(volumes=(f"{rows.parent}:/data:ro", str(tmp_path / "home")))
    mounts = {mount["Target"]: mount for mount in view(here, config).mounts}
    assert (mounts["/data"]["Source"], mounts["/data"]["ReadOnly"]) == (str(rows.parent), True)
    assert mounts[str(tmp_path / "home")]["ReadOnly"] is False


def test_a_volume_that_is_needed_anyway_is_mounted_once(here: Path, tmp_path: Path) -> None:
    (rows,) = files(tmp_path / "data", "rows.jsonl")
    config = ContainerConfig(volumes=(f"{rows}:rw", f"{here}:ro"))
    found = places(view(here, config, command=["rhstudy", "make-data", "--data.train_file", str(rows)]))
    assert (found[str(rows)], found[str(here)]) == (False, True)


def test_a_folder_that_cannot_be_made_says_why(here: Path) -> None:
    (here / "file").write_text("x", encoding="utf-8")
    wanted = "mounted folder must be a folder that can be made, got '.*/file/below'. Not a directory. Change its owner"
    with pytest.raises(InputError, match=wanted):
        view(here, written=[here / "file" / "below"])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter; pytest's own may not be."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_folder_that_the_caller_cannot_write_to_is_named(
    as_nobody: Callable[[Callable[[], str]], str], open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.getuid():
        pytest.skip("only root can make a folder of another user")
    monkeypatch.setenv("RHSTUDY_CACHE", str(open_folder))
    said = as_nobody(lambda: str(view(open_folder)))
    place = re.escape(str(open_folder))
    wanted = (
        f"InputError: mounted folder must be writable for uid 65534, got '{place}'. Change its owner to the calling"
    )
    assert re.match(wanted, said)


def test_a_shared_hub_cache_may_be_there_to_be_read(
    as_nobody: Callable[[Callable[[], str]], str], open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.getuid():
        pytest.skip("only root can make a folder of another user")
    for name in ("hub", "mine"):
        (open_folder / name).mkdir()
    (open_folder / "mine").chmod(0o777)
    monkeypatch.setenv("HF_HOME", str(open_folder / "hub"))
    monkeypatch.setenv("RHSTUDY_CACHE", str(open_folder / "mine" / "cache"))
    said = as_nobody(lambda: json.dumps(places(view(open_folder / "mine"))))
    assert json.loads(said) == {str(open_folder / "hub"): True, str(open_folder / "mine"): False}


def test_the_hub_cache_of_this_machine_is_the_containers(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert view(here).environment["HF_HOME"] == str(tmp_path / "cache" / "huggingface")
    usual = tmp_path / "home" / ".cache" / "huggingface"
    usual.mkdir(parents=True)
    found = view(here)
    assert found.environment["HF_HOME"] == str(usual)
    assert places(found)[str(usual)] is False
    for name in ("elsewhere", "hub"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HF_HOME", "../elsewhere")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    found = view(here)
    assert found.environment["HF_HOME"] == str(tmp_path / "elsewhere")
    assert {str(tmp_path / "elsewhere"), str(tmp_path / "hub")} < set(places(found))


def test_data_sets_are_found_inside_as_they_are_here(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "shared" / "data"
    beside.mkdir(parents=True)
    found = view(here)
    assert places(found)[str(beside)] is True
    assert "RHSTUDY_DATA" not in found.environment
    (tmp_path / "sets").mkdir()
    monkeypatch.setenv("RHSTUDY_DATA", "../sets")
    found = view(here)
    assert found.environment["RHSTUDY_DATA"] == str(tmp_path / "sets")
    assert places(found)[str(tmp_path / "sets")] is True
    assert str(beside) not in places(found)


def test_files_that_variables_name_come_along(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, config = files(tmp_path / "keys", "key.json", "aws")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "../keys/key.json")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "gone"))
    found = view(here)
    assert {path for path, read_only in places(found).items() if read_only} == {str(key), str(config)}
    assert found.environment["GOOGLE_APPLICATION_CREDENTIALS"] == str(key)


PASSED = {
    "MLFLOW_TRACKING_USERNAME": "me",
    "AWS_ACCESS_KEY_ID": "k",
    "AZURE_CLIENT_ID": "a",
    "HF_TOKEN": "t",
    "OMP_NUM_THREADS": "3",
    "NCCL_DEBUG": "INFO",
    "TORCH_LOGS": "x",
    "RHSTUDY_SOMETHING": "y",
    "HTTPS_PROXY": "http://proxy.example.org",
    "no_proxy": "localhost",
    "CUDA_VISIBLE_DEVICES": "1",
}
KEPT_BACK = {
    "MLFLOW_RUN_ID": "r",
    "MLFLOW_EXPERIMENT_ID": "e",
    "RHSTUDY_LAUNCH": "l",
    "RHSTUDY_LAUNCHER": "{}",
    "RHSTUDY_PARENT_RUN_ID": "p",
    "RHSTUDY_RUN_NAME": "n",
    "PYTHONPATH": "/x",
    "SECRET_OF_SOMETHING_ELSE": "s",
    "DOCKER_HOST": "unix:///x",
    "HF_EMPTY": "",
}


def test_which_variables_pass(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**PASSED, **KEPT_BACK}.items():
        monkeypatch.setenv(name, value)
    found = view(here, ContainerConfig(environment={"OMP_NUM_THREADS": "8", "OWN": "z"})).environment
    assert found.items() >= {**PASSED, "OMP_NUM_THREADS": "8", "OWN": "z"}.items()
    assert not found.keys() & {*KEPT_BACK, "PATH", "HOME"}


@pytest.mark.parametrize(
    ("gpus", "visible", "passed"),
    [("auto", "2", "2"), ("all", "", ""), ("none", "2", "2"), ("2", "2", None), ("1,2", "", None)],
)
def test_the_choice_of_gpus_is_made_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, gpus: str, visible: str, passed: str | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert view(here, ContainerConfig(gpus=gpus)).environment.get("CUDA_VISIBLE_DEVICES") == passed


@pytest.mark.parametrize(
    ("uri", "here_too"),
    [
        ("http://localhost:5000", True),
        ("https://127.0.0.1", True),
        ("http://me:secret@[::1]:80/x", True),
        ("http://LOCALHOST:5000", True),
        ("http://localhost.example.org", False),
        (HTTP, False),
        ("sqlite:////tmp/localhost.db", False),
        ("", False),
    ],
)
def test_servers_on_this_machine_are_recognised(uri: str, here_too: bool) -> None:
    assert is_on_this_machine(uri) is here_too


@pytest.mark.parametrize("command", [[], ["rhstudy"], ["rhstudy", "--flag"], ["rhstudy", "detect", "--dry-run"]])
def test_commands_without_files_need_none(here: Path, command: Sequence[str]) -> None:
    assert len(places(view(here, command=command))) == 2
