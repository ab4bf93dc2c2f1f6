"""Array shape annotations: jaxtyping's where it is installed, inert stand-ins on machines that run single stages.

Shapes are documentation in production and are checked under pytest only (tests/conftest.py installs the hook).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ModuleNotFoundError:  # a cluster node with torch, transformers and safetensors alone

        class _Unchecked:
            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Int = _Unchecked

__all__ = ["Bool", "Float", "Int"]
