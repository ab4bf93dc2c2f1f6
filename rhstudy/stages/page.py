"""A markdown report as one HTML file: images inside, nothing loaded from elsewhere, what users wrote is never code."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.token import Token

_MARKUP = re.compile(r"([\\`*\[\]<>|!&#])")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --paper: #fff; --line: #d5dae0; --shade: #f4f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e8ee; --paper: #14181d; --line: #38414b; --shade: #1d232a }
}
body { margin: 0 auto; padding: 1.5rem; max-width: 80rem; color: var(--ink); background: var(--paper);
  font: 15px/1.55 system-ui, sans-serif }
h1, h2, h3 { line-height: 1.25; margin: 1.8em 0 .6em } h1 { margin-top: .3em }
h2 { border-bottom: 1px solid var(--line); padding-bottom: .2em }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: 13px; margin: 1em 0 }
th, td { padding: .35em .7em; border: 1px solid var(--line); text-align: left; vertical-align: top }
th, tr:nth-child(even) td { background: var(--shade) } td { font-variant-numeric: tabular-nums }
td:not(:last-child) { white-space: nowrap } td:last-child { min-width: 11rem }
img { display: block; max-width: min(100%, 46rem); background: #fff; border: 1px solid var(--line); margin: 1em 0 }
code { background: var(--shade); padding: .1em .3em; font-size: 90% }
"""


def escaped(text: str) -> str:
    """`text` on one line, with the characters escaped that markdown would take for markup."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def page(markdown: str, images: Mapping[str, bytes], title: str) -> str:
    """Render CommonMark with tables as a page that needs no other file.

    HTML in the text is shown, not run; links are shown as they are written; of an image not in `images` only the
    description is shown, so that opening the page loads nothing.

    Args:
        markdown: the text.
        images: PNG files by the path under which the text shows them.
        title: of the page.

    Returns:
        The HTML document.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.disable(["link", "autolink", "reference", "html_block", "html_inline"])
    tokens = parser.parse(markdown)
    for token in _images(tokens):
        content = images.get(str(token.attrs["src"]))
        if content is None:
            token.type = "text"
        else:
            token.attrs["src"] = "data:image/png;base64," + base64.b64encode(content).decode()
    body = parser.renderer.render(tokens, parser.options, {})
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _images(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        if token.type == "image":
            yield token
        yield from _images(token.children or [])
