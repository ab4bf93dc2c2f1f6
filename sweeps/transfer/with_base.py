"""A search file whose base is the best recipe of another sweep.

    python sweeps/transfer/with_base.py BEST.toml SEARCH.toml > NEW.toml

BEST.toml is what the other sweep left (`sweep/best.toml` of its run); its first own recipe replaces the table [base] of
SEARCH.toml. Where the best was the real recipe, there is no own one and nothing to carry over.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from rhstudy.tracking.config_files import toml_text

_BASE = re.compile(r"^\[base\]\n(?:(?!\[).*\n)*", re.MULTILINE)


def with_base(best: str, search: str) -> str:
    """`search` with the first own recipe of `best` as its base, both TOML."""
    recipes = tomllib.loads(best).get("custom_recipes", [])
    if not recipes:
        raise SystemExit("BEST.toml must hold a recipe of its own, got none: the best trial was the real recipe.")
    found = _BASE.search(search)
    if found is None:
        raise SystemExit("SEARCH.toml must hold a table [base], got none. Add one.")
    return f"{search[: found.start()]}{toml_text({'base': recipes[0]}).strip()}\n\n{search[found.end() :]}"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    sys.stdout.write(with_base(*(Path(name).read_text(encoding="utf-8") for name in sys.argv[1:])))
