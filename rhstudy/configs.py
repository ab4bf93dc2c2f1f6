"""Config machinery (TOML in, frozen dataclasses out, one digest) and the parts several stages share.

Each stage's own config stands beside the stage. Conditions live in `__post_init__`; an unknown key raises and names
the nearest valid one. A field marked ``metadata=INPUT`` refers to another run's artifacts: the digest takes their
content, not their name. A field marked ``metadata=NO_DIGEST`` changes results by rounding at most (device, batch size).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from rhstudy.errors import InputError, message, require

INPUT: Mapping[str, bool] = {"input": True}
NO_DIGEST: Mapping[str, bool] = {"no_digest": True}

Config = TypeVar("Config")

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "4bit", "8bit", "nf4"]
Scaling = Literal["theta", "linear", "ntk", "yarn"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which base model, and how it is held in memory.

    Attributes:
        name: ``tiny`` (part of this package), ``smollm2-135m``, ``qwen2.5-coder-0.5b``, ``qwen2.5-coder-1.5b``, a
            local folder in hub layout, or a hub id. Only safetensors or GGUF weights; remote code is never run.
        dtype: number format of the weights; ``auto`` is bfloat16 on a GPU and float32 on a CPU.
        quantization: bitsandbytes weights: ``4bit`` (nf4) or ``8bit`` of everything but attention modules and LM head;
            ``nf4`` quantises attention too, twice over (the base of QLoRA).
        device: ``auto`` is the first GPU when there is one, else the CPU.
        cache_dir: where converted models are kept; empty means ``$RHSTUDY_CACHE`` or ``~/.cache/rhstudy``.
    """

    name: str = dataclasses.field(default="smollm2-135m", metadata=INPUT)
    dtype: Dtype = "auto"
    quantization: Quantization = "none"
    device: str = dataclasses.field(default="auto", metadata=NO_DIGEST)
    cache_dir: str = dataclasses.field(default="", metadata=NO_DIGEST)

    def __post_init__(self) -> None:
        require(bool(self.name), "model.name", "be a model reference", self.name, "Try smollm2-135m")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContextConfig:
    """Context extension through the model's own rope parameters (equations: `rhstudy.models.rope`).

    Attributes:
        scaling: ``theta`` sets the base frequency alone; ``linear`` (position interpolation), ``ntk`` (static NTK-aware
            base change) and ``yarn`` extend by `factor`. Dynamic NTK is not offered: it turns the same tokens otherwise
            in a longer batch.
        rope_theta: RoPE base frequency; 0 leaves it as shipped. ``ntk`` takes none: it follows from the factor.
        factor: how many times the native context; 1 with ``theta``, more than 1 and at most 1024 otherwise.
    """

    scaling: Scaling = "theta"
    rope_theta: float = 0.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.rope_theta == 0 or 1 <= self.rope_theta < math.inf,
            "context.rope_theta",
            "be 0 (as shipped) or at least 1",
            self.rope_theta,
            "Llama-style models ship 1e4 to 5e5; raise it to extend the context",
        )
        plain_theta, factor = self.scaling == "theta", self.factor
        remedy = "Set context.scaling to linear, ntk or yarn, or leave the factor out"
        require(factor == 1 or not plain_theta, "context.factor", "be 1 with scaling theta", factor, remedy)
        fits = plain_theta or 1 < factor <= 1024
        must, remedy = f"lie in (1, 1024] with scaling {self.scaling}", "Give wanted length / native length"
        require(fits, "context.factor", must, factor, remedy)
        remedy = "Leave it out: ntk sets the base frequency from the factor"
        both = self.scaling == "ntk" and self.rope_theta != 0
        require(not both, "context.rope_theta", "be 0 with scaling ntk", self.rope_theta, remedy)

    @property
    def is_native(self) -> bool:
        """Whether positions are as shipped."""
        return self.scaling == "theta" and self.rope_theta == 0

    @property
    def label(self) -> str:
        """For people: ``as shipped``, ``theta 300000`` or, for instance, ``yarn x4``."""
        theta = f"theta {self.rope_theta:g}" if self.rope_theta else ""
        if self.scaling == "theta":
            return theta or "as shipped"
        return f"{self.scaling} x{self.factor:g}" + (f", {theta}" if theta else "")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Where runs are recorded; never part of a digest.

    Attributes:
        recorder: ``mlflow``, or ``folder`` for machines without MLflow.
        uri: MLflow tracking URI; empty means ``$MLFLOW_TRACKING_URI`` or ``sqlite:///mlflow.db`` made absolute.
        folder: root of the folder recorder.
        experiment: MLflow experiment name.
        work_dir: where unfinished work is kept for resuming; empty means ``<cache>/work``.
        system_metrics: log CPU, memory and GPU use of this host every few seconds (MLflow only).
    """

    recorder: Literal["mlflow", "folder"] = "mlflow"
    uri: str = ""
    folder: str = "rhstudy-runs"
    experiment: str = "rhstudy"
    work_dir: str = ""
    system_metrics: bool = True


def cache_root(cache_dir: str = "") -> Path:
    """The cache folder: `cache_dir`, else ``$RHSTUDY_CACHE``, else ``~/.cache/rhstudy``."""
    return Path(cache_dir or os.environ.get("RHSTUDY_CACHE") or Path.home() / ".cache" / "rhstudy").expanduser()


def require_at_least(config: Any, prefix: str, **least: int) -> None:
    """Check lower bounds of several fields of `config`.

    Args:
        config: the config.
        prefix: its dotted name, for messages.
        **least: field name -> smallest valid value.

    Raises:
        InputError: a field is below its bound.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        require(value >= bound, f"{prefix}.{name}", f"be at least {bound}", value, "Raise it")


def _unknown_key(name: str, valid: list[str], where: str) -> InputError:
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], valid, n=1, cutoff=0.5)
    remedy = f"Did you mean {near[0]}?" if near else f"Valid keys: {', '.join(valid)}"
    return InputError(message(name, "be a known key", "<unknown>", remedy.rstrip("?"), where))


def from_mapping(cls: type[Config], values: Mapping[str, Any], *, where: str = "", prefix: str = "") -> Config:
    """Build the config dataclass `cls` from nested plain values, strictly.

    Args:
        cls: a frozen dataclass whose fields are plain values, literals, tuples, mappings or such dataclasses.
        values: as read from TOML or JSON.
        where: file the values came from, for messages.
        prefix: dotted path of `cls` inside the whole config.

    Raises:
        InputError: unknown key (nearest valid one named), wrong type, missing field, or a condition of `cls` fails.
    """
    hints = typing.get_type_hints(cls)
    fields = _fields_of(cls)
    require(isinstance(values, Mapping), prefix or cls.__name__, "be a table", values, f"Write it as [{prefix}]", where)
    built: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        dotted = f"{prefix}.{name}" if prefix else name
        if name not in fields:
            raise _unknown_key(dotted, sorted(fields), where)
        built[name] = _coerce(hints[name], value, dotted, where)
    missing = [
        name
        for name, item in fields.items()
        if name not in built and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    require(
        not missing,
        f"{prefix}.{missing[0]}" if prefix and missing else "".join(missing[:1]),
        "be given",
        "<nothing>",
        f"Add it to the config or pass --{'.'.join(filter(None, [prefix, *missing[:1]]))}",
        where,
    )
    return cls(**built)


def unvalidated(
    cls: type[Config], values: Mapping[str, Any], *, missing: Any, where: str = "", prefix: str = ""
) -> Config:
    """An instance of `cls` from possibly incomplete `values`, its conditions not yet checked.

    For command lines: what the file gives is checked for type and key, what it leaves out stays `missing`.

    Args: as `from_mapping`; `missing` stands where a field without default was not given.

    Raises:
        InputError: unknown key or wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = _fields_of(cls)
    given = {key.replace("-", "_"): value for key, value in values.items()}
    for name in given:
        if name not in fields:
            raise _unknown_key(f"{prefix}.{name}" if prefix else name, sorted(fields), where)
    instance = object.__new__(cls)
    for name, item in fields.items():
        dotted, nested = f"{prefix}.{name}" if prefix else name, dataclasses.is_dataclass(hints[name])
        has_default = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
        if nested and (name in given or not has_default):
            table = given.get(name, {})
            require(isinstance(table, Mapping), dotted, "be a table", table, f"Write it as [{dotted}]", where)
            value = unvalidated(hints[name], table, missing=missing, where=where, prefix=dotted)
        elif name in given:
            value = _coerce(hints[name], given[name], dotted, where)
        elif item.default is not dataclasses.MISSING:
            value = item.default
        else:
            factory = item.default_factory
            value = missing if factory is dataclasses.MISSING else factory()
        object.__setattr__(instance, name, value)
    return instance


def _fields_of(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    return {item.name: item for item in dataclasses.fields(cls) if item.init}


def _coerce(kind: Any, value: Any, name: str, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else from_mapping(kind, value, where=where, prefix=name)
    if origin is Literal:
        remedy = f"Choose one of {', '.join(map(str, args))}"
        require(value in args, name, f"be one of {', '.join(map(str, args))}", value, remedy, where)
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(next(arg for arg in args if arg is not type(None)), value, name, where)
    if origin is tuple:
        require(isinstance(value, list | tuple), name, "be a list", value, "Write it as [a, b]", where)
        return tuple(_coerce(args[0], item, f"{name}[{index}]", where) for index, item in enumerate(value))
    if origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, Any]):
        require(isinstance(value, Mapping), name, "be a table", value, f"Write it as [{name}]", where)
        return {key: _coerce(args[1], item, f"{name}.{key}", where) for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    matches = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    require(matches, name, f"be of type {kind.__name__}", value, f"Give a {kind.__name__}", where)
    return value


def load_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: the file is missing, unreadable, or not TOML (with the parser's position).
    """
    target = Path(path)
    try:
        return tomllib.loads(target.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(message("config", "be an existing file", str(path), "Check the path")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(message("config", "be a readable file", str(path), f"Reading failed: {error}")) from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(message("config", "be valid TOML", str(path), f"The parser says: {error}")) from error


def load_config(cls: type[Config], path: str | Path) -> Config:
    """Read `path` (TOML) into the config dataclass `cls`; errors as `from_mapping` and `load_toml`."""
    return from_mapping(cls, load_toml(path), where=str(path))


def plain(value: Any) -> Any:
    """Nested plain values (dict, list, str, number, bool, None) of a config, for TOML, JSON and params."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value) if item.init}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def digest_view(config: Any) -> dict[str, Any]:
    """`plain(config)` without the fields that are inputs or cannot change results; what `digest` hashes."""
    view: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        if item.metadata.get("input") or item.metadata.get("no_digest") or not item.init:
            continue
        value = getattr(config, item.name)
        nested = dataclasses.is_dataclass(value) and not isinstance(value, type)
        view[item.name] = digest_view(value) if nested else plain(value)
    return view


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `parts`; equal on every machine and Python."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to dotted keys, as MLflow params: ``{"model": {"name": "x"}}`` -> ``{"model.name": "x"}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{dotted}."))
        else:
            flat[dotted] = value
    return flat
