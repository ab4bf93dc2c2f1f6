"""The runtime type checks of the tests: every function and dataclass of a package is checked from its import on.

Functions that name array shapes are checked by jaxtyping, which binds the arguments and checks them twice, so that
dimension names agree; it costs 20 µs a call and more at definition. Every other one is checked by beartype alone.

jaxtyping's own import hook would wrap all of them. It also looks for bytecode under another name while a module is
imported, in the libraries too that the module imports: torch, transformers and MLflow were compiled at every start.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, get_type_hints

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

NAME = "__checked__"
_SHAPE = re.compile(r"\b(?:Bool|Float|Int)\[")
# An int passes for a float, as it does for mypy.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def install(package: str) -> None:
    """Check `package` from its import on."""
    sys.meta_path.insert(0, _Finder(package))


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] != self._package:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return compile(_decorated(ast.parse(self.get_data(path), path)), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, NAME, checked)
        super().exec_module(module)


def _decorated(tree: ast.Module) -> ast.Module:
    """`tree` with `checked` next to each function, and around each class as `@dataclass` leaves it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            place = 0 if isinstance(node, ast.ClassDef) else len(node.decorator_list)
            node.decorator_list.insert(place, ast.copy_location(ast.Name(NAME, ast.Load()), node))
    return tree


def checked(item: Any) -> Any:
    """A function that checks its parameters and its result; a class that checks what its dataclass fields are given."""
    if not isinstance(item, type):
        shapes = any(map(_names_shape, item.__annotations__.values()))
        return jaxtyped(item, typechecker=_check) if shapes else _plainly_checked(item)
    if "__dataclass_fields__" in vars(item) and "__init__" in vars(item):
        item.__init__ = checked(item.__init__)
    return item


def _names_shape(annotation: Any) -> bool:
    return _SHAPE.search(annotation if isinstance(annotation, str) else repr(annotation)) is not None


def _plainly_checked(function: Callable[..., Any]) -> Callable[..., Any]:
    written = function.__annotations__
    function.__annotations__ = {name: _resolved(value, function.__globals__) for name, value in written.items()}
    found = _check(function)
    function.__annotations__ = found.__annotations__ = written
    return found


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    """The type that `annotation` names; anything where that is not known yet, as with jaxtyping."""

    def holder(value: Any) -> None:
        del value

    holder.__annotations__ = {"value": annotation}
    try:
        return get_type_hints(holder, names, include_extras=True)["value"]
    except Exception:
        return Any
