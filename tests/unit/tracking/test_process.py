from __future__ import annotations

import os

import pytest

from rhstudy.tracking.process import (
    LAUNCH_TAG,
    LAUNCH_VARIABLES,
    LAUNCHER_TAG,
    is_alive,
    is_dead,
    launched_place,
    process_tags,
)


def moved(part: int, value: str) -> dict[str, str]:
    """This process's tags with one part of its space replaced and a pid nobody has."""
    tags = process_tags()
    space = tags["rhstudy.process_space"].split("/")
    space[part] = value
    return {**tags, "rhstudy.process_space": "/".join(space), "rhstudy.pid": "4194399"}


def test_this_process_is_alive() -> None:
    assert process_tags()["rhstudy.pid"] == str(os.getpid())
    assert not is_dead(process_tags())


def test_a_reused_pid_is_not_the_same_process() -> None:
    assert is_dead({**process_tags(), "rhstudy.process_start_time": "1"})


def test_a_pid_nobody_has_is_dead() -> None:
    assert is_dead({**process_tags(), "rhstudy.pid": "4194399"})


@pytest.mark.parametrize(("part", "dead"), [(0, False), (1, True), (2, False)])
def test_after_a_reboot_it_is_dead_but_another_machine_or_container_is_unknown(part: int, dead: bool) -> None:
    assert is_dead(moved(part, "other")) is dead


@pytest.mark.parametrize("key", ["rhstudy.host", "rhstudy.process_space", "rhstudy.pid"])
def test_without_a_tag_nothing_is_known(key: str) -> None:
    tags = {**process_tags(), "rhstudy.process_start_time": "1"}
    assert not is_dead({name: value for name, value in tags.items() if name != key})


def test_a_process_is_alive_where_it_can_be_seen() -> None:
    tags = process_tags()
    assert is_alive(tags)
    assert not is_alive({**tags, "rhstudy.process_start_time": "1"})
    assert not is_alive({**tags, "rhstudy.pid": "4194399"})
    assert not is_alive({**tags, "rhstudy.pid": "4194399", "rhstudy.process_start_time": ""})
    assert not is_alive({**tags, "rhstudy.host": "another"})
    assert not is_alive({})


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_process_of_another_machine_boot_or_container_cannot_be_seen(part: int) -> None:
    tags = {**moved(part, "other"), "rhstudy.pid": str(os.getpid())}
    assert not is_alive(tags)


def test_a_launched_process_says_who_launched_it_and_where_its_run_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert not {LAUNCH_TAG, LAUNCHER_TAG} & process_tags().keys()
    assert launched_place() == {"parent_run_id": "", "run_name": ""}
    for name in LAUNCH_VARIABLES:
        monkeypatch.setenv(name, f"value of {name}")
    tags = process_tags()
    assert (tags[LAUNCH_TAG], tags[LAUNCHER_TAG]) == ("value of RHSTUDY_LAUNCH", "value of RHSTUDY_LAUNCHER")
    assert launched_place() == {
        "parent_run_id": "value of RHSTUDY_PARENT_RUN_ID",
        "run_name": "value of RHSTUDY_RUN_NAME",
    }
