"""The runtime type checker of the tests: an int passes for a float, as it does for mypy."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
