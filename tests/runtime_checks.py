"""The runtime type checker of the tests: an int passes for a float, as it does for mypy.

jaxtyping's import hook puts `jaxtyping.jaxtyped` on every function, which costs 20 µs a call and more at definition: it
binds the arguments and checks them twice, so that dimension names agree. Only functions that name shapes need that.
Every other one is checked by beartype alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped = jaxtyping.jaxtyped
_SHAPE = re.compile(r"\b(?:Bool|Float|Int)\[")
_CHECKED = "__checked_by_beartype__"


def install(package: str) -> None:
    """Check every function and dataclass of `package` from its import on."""
    jaxtyping.jaxtyped = jaxtyped
    jaxtyping.install_import_hook(package, "runtime_checks.check")


def jaxtyped(item: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """What `jaxtyping.jaxtyped` does, in a shorter way where annotations name no shape."""
    if item is None:
        return lambda item: jaxtyped(item, typechecker=typechecker)
    if isinstance(item, type):
        made = vars(item).get("__init__") if hasattr(item, "__dataclass_fields__") else None
        if made is not None and not hasattr(made, _CHECKED):
            item.__init__ = jaxtyped(made, typechecker=typechecker)
        return item
    plain = hasattr(item, "__code__") and not any(map(_names_shape, item.__annotations__.values()))
    return _checked(item, typechecker) if plain else _jaxtyped(item, typechecker=typechecker)


def _names_shape(annotation: Any) -> bool:
    return _SHAPE.search(annotation if isinstance(annotation, str) else repr(annotation)) is not None


def _checked(function: Callable[..., Any], typechecker: Callable[[Any], Any]) -> Callable[..., Any]:
    written = function.__annotations__
    function.__annotations__ = {name: _resolved(value, function.__globals__) for name, value in written.items()}
    checked = typechecker(function)
    function.__annotations__ = checked.__annotations__ = written
    setattr(checked, _CHECKED, True)
    return checked


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    """The type that `annotation` names; anything where that is not known yet, as with jaxtyping."""

    def holder(value: Any) -> None:
        del value

    holder.__annotations__ = {"value": annotation}
    try:
        return get_type_hints(holder, names, include_extras=True)["value"]
    except Exception:
        return Any
