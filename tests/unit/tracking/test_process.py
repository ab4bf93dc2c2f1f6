from __future__ import annotations

import os

import pytest

from rhstudy.tracking.process import is_dead, process_tags


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
