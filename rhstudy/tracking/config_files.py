"""The config of a run as files a person can read and `rhstudy STAGE config.toml` can run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rhstudy.configs import plain
from rhstudy.errors import masked
from rhstudy.tracking.atomic_files import json_text


def write_config_files(folder: Path, config: Any) -> None:
    """Write ``config.json`` and ``config.toml`` of the config dataclass `config` into `folder` (made if missing).

    A login in ``tracking.uri`` is written as ``***``: the files become artifacts, which others read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = plain(config)
    tracking = values.get("tracking")
    if isinstance(tracking, dict) and "uri" in tracking:
        tracking["uri"] = masked(tracking["uri"])
    (folder / "config.json").write_text(json_text(values), encoding="utf-8")
    (folder / "config.toml").write_text(toml_text(values), encoding="utf-8")


def toml_text(values: Mapping[str, Any], prefix: str = "") -> str:
    """Nested plain values as TOML. None has no form in TOML: the key is left out, and loading gives its default."""
    scalars = {key: value for key, value in values.items() if value is not None and not isinstance(value, Mapping)}
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}\n" for key, value in scalars.items()]
    for key, table in tables.items():
        dotted = f"{prefix}{_key(key)}"
        lines.append(f"\n[{dotted}]\n{toml_text(table, f'{dotted}.')}")
    return "".join(lines)


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return repr(value)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, except that TOML also wants DEL escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
