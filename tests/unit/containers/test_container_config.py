from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhstudy.containers.config import ContainerConfig, config_values, container_config, split_volume
from rhstudy.errors import InputError


def test_nothing_given_is_the_default() -> None:
    assert container_config(None) == container_config("") == container_config({}) == ContainerConfig()


def test_text_file_and_mapping_say_the_same(tmp_path: Path) -> None:
    values = {"runtime": "docker", "shm-size": "1g", "build_args": {"BASE_IMAGE": "x"}, "volumes": [str(tmp_path)]}
    file = tmp_path / "backend.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    expected = ContainerConfig(
        runtime="docker", shm_size="1g", build_args={"BASE_IMAGE": "x"}, volumes=(str(tmp_path),)
    )
    assert container_config(values) == container_config(json.dumps(values)) == container_config(str(file)) == expected


def test_flags_win_where_they_say_something() -> None:
    text = '{"runtime": "docker", "variant": "cpu"}'
    assert container_config(text, runtime="host", variant="") == ContainerConfig(runtime="host", variant="cpu")


def test_docker_arguments_win_and_are_text() -> None:
    given_args = {"network": "host", "shm-size": "8g", "gpus": 0}
    found = container_config({"network": "bridge", "memory": "4g"}, given_args)
    assert found == ContainerConfig(network="host", shm_size="8g", gpus="0", memory="4g")


def test_a_docker_argument_without_key_here_is_refused() -> None:
    wanted = (
        r"-A must name an argument this backend knows, got 'user'. Known: gpus, network, memory, shm-size; the rest"
    )
    with pytest.raises(InputError, match=wanted):
        container_config({}, {"user": "1000"})


@pytest.mark.parametrize("text", ["{", "no.json", '{"a": }', "docker"])
def test_what_is_no_json_is_refused_with_an_example(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = (
        r"backend config must be readable JSON, got '.*'\. Give a JSON file or text such as '{\"variant\": \"cpu\"}'"
    )
    with pytest.raises(InputError, match=wanted):
        container_config(text)


def test_json_must_be_an_object() -> None:
    with pytest.raises(InputError, match="backend config must be a JSON object, got '\\[1\\]'. Write it as {...}"):
        container_config("[1]")


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"varient must be a known key.*\(backend config\). Did you mean variant"):
        container_config({"varient": "cpu"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"runtime": "podman"}, "runtime must be one of auto, docker, host, got 'podman'"),
        ({"builder": "kaniko"}, "builder must be one of auto, buildkit, classic, got 'kaniko'"),
        ({"variant": "cuda"}, "variant must be auto, cpu or cuNNN, got 'cuda'. Try cpu"),
        ({"variant": "cpu "}, "variant must be auto, cpu or cuNNN"),
        ({"gpus": "two"}, "gpus must be auto, none, all or device numbers, got 'two'. Try all, or 0,1"),
        ({"gpus": "0,"}, "gpus must be auto"),
        ({"gpus": ""}, "gpus must be auto"),
        ({"memory": "32 GB"}, "memory must be a size, got '32 GB'. Write it as 512m or 32g"),
        ({"shm_size": "-1"}, "shm_size must be a size, got '-1'"),
        ({"network": ""}, "network must be auto or a network of the engine, got ''. Try auto"),
        ({"stop_timeout_s": -1}, "stop_timeout_s must be at least 0, got -1. Give seconds"),
        ({"patience_s": -5}, "patience_s must be at least 0, got -5. Give seconds"),
        ({"patience_s": "5"}, "patience_s must be of type int, got '5'"),
        ({"environment": {"A": 1}}, "environment.A must be of type str, got 1"),
        ({"environment": ["A"]}, "environment must be a table"),
        ({"volumes": "/data"}, "volumes must be a list, got '/data'"),
        ({"volumes": ["/no/such/place"]}, "volumes must exist on this machine, got '/no/such/place'. Check the path"),
    ],
)
def test_each_wrong_value_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        container_config(values)


@pytest.mark.parametrize("gpus", ["auto", "none", "all", "0", "0,2,11"])
@pytest.mark.parametrize("variant", ["auto", "cpu", "cu130", "cu118"])
def test_right_values_pass(gpus: str, variant: str) -> None:
    assert container_config({"gpus": gpus, "variant": variant, "memory": "512M", "shm_size": ""}).gpus == gpus


@given(st.text(max_size=8))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    if re.fullmatch(r"([0-9]+[bkmgBKMG]?)?", text):
        assert ContainerConfig(memory=text).memory == text
    elif not any(letter.isdigit() for letter in text) or text[-1:].isspace():
        with pytest.raises(InputError, match="memory must be a size"):
            ContainerConfig(memory=text)


@given(st.dictionaries(st.text(min_size=1, max_size=6), st.text(max_size=8), max_size=4))
def test_tags_say_which_variables_were_given_and_not_their_values(values: dict[str, str]) -> None:
    environment = {name: f"a secret {value}" for name, value in values.items()}
    arguments = {"TORCH_INDEX": "https://me:tok3n@example.org"}
    shown = config_values(ContainerConfig(environment=environment, memory="4g", build_args=arguments))
    assert shown["build_args"] == ["TORCH_INDEX"]
    assert shown["environment"] == sorted(environment)
    assert shown["memory"] == "4g"
    assert shown.keys() == {item.name for item in dataclasses.fields(ContainerConfig)}
    assert "a secret" not in json.dumps(shown, default=dict)


@pytest.mark.parametrize(
    ("form", "inside", "read_only"),
    [
        ("{0}", "{0}", False),
        ("{0}:ro", "{0}", True),
        ("{0}:rw", "{0}", False),
        ("{0}:/data", "/data", False),
        ("{0}:/data:ro", "/data", True),
        ("{0}:/data:rw", "/data", False),
    ],
)
def test_forms_of_a_volume(tmp_path: Path, form: str, inside: str, read_only: bool) -> None:
    assert split_volume(form.format(tmp_path)) == (tmp_path, inside.format(tmp_path), read_only)


def test_a_volume_may_be_relative_or_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert split_volume("data:ro") == (tmp_path / "here" / "data", str(tmp_path / "here" / "data"), True)
    assert split_volume("../here/data") == (tmp_path / "here" / "data", str(tmp_path / "here" / "data"), False)
    assert split_volume("~/here:/here") == (tmp_path / "here", "/here", False)
    with pytest.raises(InputError, match="volumes must exist on this machine, got '~nobody-has-this-name/x'"):
        split_volume("~nobody-has-this-name/x")


@pytest.mark.parametrize("form", ["", ":", "/tmp:", ":/data", "/tmp:/a:/b", "/tmp:/a:ro:ro", "::ro"])
def test_other_forms_are_refused(form: str) -> None:
    wanted = "volumes must name one or two paths, got .*Write PATH, PATH:ro, HOST:CONTAINER or HOST:CONTAINER:ro"
    with pytest.raises(InputError, match=wanted):
        split_volume(form)


def test_the_place_in_the_container_is_absolute(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="volumes must have an absolute path in the container, got 'data'"):
        split_volume(f"{tmp_path}:data")
