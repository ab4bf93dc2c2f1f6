"""The HTML page: self-contained, tables and headings rendered, nothing that users wrote is taken for code."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

import pytest

from rhstudy.stages.page import escaped, page

PNG = b"\x89PNG not really"


class Seen(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data):
        self.words.append(data)


def test_a_page_holds_its_images():
    seen = Seen(
        page("# One\n\n![a map](figures/a.png)\n\n| x | y |\n| --- | --- |\n| 1 | 2 |\n", {"figures/a.png": PNG}, "t")
    )
    assert {"h1", "table", "th", "td", "img"} <= set(seen.tags)
    assert seen.sources == ["data:image/png;base64," + base64.b64encode(PNG).decode()]


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "text <b>bold</b> text",
        "[click](javascript:alert(1))",
        "[click](https://example.org)",
        "<https://example.org>",
        "![seen](https://example.org/pixel.png)",
        "[a]\n\n[a]: https://example.org",
        "| a |\n| --- |\n| <script>alert(1)</script> |",
    ],
)
def test_what_users_wrote_is_shown_and_neither_run_nor_loaded(attack):
    seen = Seen(page(attack, {}, "</title><script>alert(1)</script>"))
    assert not {"script", "img", "a", "b"} & set(seen.tags)
    assert seen.sources == []
    if "alert" in attack or "bold" in attack:
        assert "alert" in "".join(seen.words[-40:]) or "bold" in "".join(seen.words)


@pytest.mark.parametrize(
    "text", ["a|b", "**x** `y` [z](w) <u> & \\ #", "two\nlines  and spaces", "templated_in_filler"]
)
def test_escaped_text_reads_as_it_was_written(text):
    seen = Seen(page(escaped(text), {}, "t"))
    body = "".join(seen.words).split("\n\n", 1)[-1]
    assert " ".join(text.split()) in body
    assert not {"strong", "em", "code", "a", "u"} & set(seen.tags)
