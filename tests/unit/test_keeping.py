"""Things kept in memory inside a block, and nowhere else."""

from __future__ import annotations

from rhstudy.keeping import clear, is_keeping, keeping, kept, put, take


def made(calls: list[str], value: str) -> str:
    calls.append(value)
    return value


def test_inside_a_block_a_value_is_made_once_and_outside_every_time() -> None:
    calls: list[str] = []
    assert [kept("texts", 1, lambda: made(calls, "a")) for _ in range(2)] == ["a", "a"]
    assert len(calls) == 2
    with keeping():
        assert [kept("texts", 1, lambda: made(calls, "b")) for _ in range(3)] == ["b"] * 3
        assert len(calls) == 3
    assert not is_keeping()
    kept("texts", 1, lambda: made(calls, "c"))
    assert calls[-1] == "c"


def test_those_used_longest_ago_go_first() -> None:
    calls: list[str] = []
    with keeping():
        for key in ("a", "b", "a", "c", "a", "b"):
            kept("texts", key, lambda key=key: made(calls, key), most=2)
    assert calls == ["a", "b", "c", "b"]


def test_a_block_in_a_block_shares_and_ends_with_the_outer() -> None:
    with keeping():
        put("texts", 1, "outer")
        with keeping():
            assert take("texts", 1) == "outer"
            put("texts", 1, "changed")
        assert take("texts", 1) == "changed"
        assert take("texts", 1) is None
        put("texts", 2, "x")
        clear("texts")
        assert take("texts", 2) is None
    put("texts", 3, "nowhere")
    assert take("texts", 3) is None
