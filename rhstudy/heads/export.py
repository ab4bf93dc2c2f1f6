"""What `rhstudy heads export SCORES` does: head scores written as another tool reads them."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rhstudy.configs import TrackingConfig
from rhstudy.errors import InputError, StudyError, message, require
from rhstudy.heads.exchange import (
    RECENT_SIZE,
    SINK_SIZE,
    write_duoattention,
    write_head_set,
    write_headkv,
    write_qrhead,
)
from rhstudy.heads.published import write_published
from rhstudy.heads.sets import retrieval_heads
from rhstudy.types import HeadScores

_FORMAT_OF = {
    "top_k": "qrhead-set",
    "threshold": "qrhead-set",
    "num_kv_heads": "duoattention",
    "sink_size": "duoattention",
    "recent_size": "duoattention",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """Head scores as another tool reads them; what their numbers mean there: README, "Other tools' formats".

    Attributes:
        format: what to write: Wu et al.'s ``published`` scores, a ``qrhead`` score list or the heads of a
            ``qrhead-set``, a ``duoattention`` pattern folder, or ``headkv``, which is ``published``, checked.
        output: file to write (duoattention: folder); what is there is replaced.
        top_k: qrhead-set: take the K heads of highest mean score; 0 leaves it to `threshold`.
        threshold: qrhead-set: take the heads with a mean score of at least this, in (0, 1]; 0 leaves it to `top_k`.
        num_kv_heads: duoattention: key/value heads of a layer, which must be given.
        sink_size: duoattention: first tokens that a streaming head keeps; 0 is 128, as in the released patterns.
        recent_size: duoattention: last tokens that a streaming head keeps; 0 is 256, as in the released patterns.
        tracking: where run ids are looked up.
    """

    format: Literal["published", "qrhead", "qrhead-set", "duoattention", "headkv"]
    output: str
    top_k: int = 0
    threshold: float = 0.0
    num_kv_heads: int = 0
    sink_size: int = 0
    recent_size: int = 0
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        require(bool(self.output), "export.output", "name a file or folder", self.output, "Give --output PATH")
        for name, owner in _FORMAT_OF.items():
            value, remedy = getattr(self, name), f"It is for --format {owner}"
            fits = value == 0 or self.format == owner
            require(fits, f"export.{name}", f"be left out with --format {self.format}", value, remedy)
        if self.format == "qrhead-set":
            given = {name: getattr(self, name) for name in ("top_k", "threshold") if getattr(self, name) != 0}
            remedy = "QRHead's own sets are the top 16; the rule for retrieval scores is a threshold of 0.1"
            require(len(given) == 1, "export", "have one of top_k and threshold", given, remedy)
        if self.format == "duoattention":
            got, remedy = self.num_kv_heads, "It is num_key_value_heads in the model's config.json"
            require(got != 0, "export.num_kv_heads", "be given with --format duoattention", got, remedy)


def export(scores: HeadScores, config: ExportConfig) -> dict[str, Any]:
    """Write `scores` as `config` asks.

    Args:
        scores: of one model.
        config: the format and where to write it.

    Returns:
        ``output``, ``format`` and ``num_heads``, the query heads written; for a pattern also ``num_kv_heads`` (of the
        whole model) and ``fraction_zero``, the share of them with value 0: at a sparsity below it DuoAttention chooses
        among them at random.

    Raises:
        InputError: the format cannot hold these scores, an option is out of range, or the output cannot be written.
        StudyError: the disk is full.
    """
    output = Path(config.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        counts = _written(scores, config, output)
    except OSError as error:
        kind = StudyError if error.errno in (errno.ENOSPC, errno.EDQUOT) else InputError
        must = "be a place that can be written"
        raise kind(message("export.output", must, config.output, f"Writing failed: {error.strerror}")) from error
    return {"output": str(output), "format": config.format, **counts}


def _written(scores: HeadScores, config: ExportConfig, output: Path) -> dict[str, Any]:
    if config.format == "qrhead-set":
        heads = retrieval_heads(scores, config.threshold, config.top_k)
        write_head_set(heads, output)
        return {"num_heads": len(heads), "rule": heads.rule}
    if config.format == "duoattention":
        values = write_duoattention(
            scores,
            output,
            num_kv_heads=config.num_kv_heads,
            sink_size=config.sink_size or SINK_SIZE,
            recent_size=config.recent_size or RECENT_SIZE,
        )
        pattern = {"num_kv_heads": values.size, "fraction_zero": float((values <= 0).mean())}
    else:
        write = {"published": write_published, "qrhead": write_qrhead, "headkv": write_headkv}[config.format]
        write(scores, output)
        pattern = {}
    return {"num_heads": int(np.isfinite(scores.mean()).sum()), **pattern}
