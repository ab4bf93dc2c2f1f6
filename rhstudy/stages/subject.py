"""Which model a stage looks at: base, context extension and checkpoint, and the arm it belongs to.

Every stage that runs a model writes the same `subject.json`, so that `analyze` knows what it puts side by side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.data.knobs import RESERVED_NAMES
from rhstudy.errors import InputError, message, require
from rhstudy.models.load import CHECKPOINT_CARD, LoadedModel
from rhstudy.models.warm import lent_model
from rhstudy.tracking.artifacts import ArtifactFolder

SUBJECT = "subject.json"
UNTUNED, UNTUNED_NATIVE = RESERVED_NAMES
_CARD_KEYS = ("recipe", "recipe_digest", "contains_real", "seed", "train_loss", "weight_change_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model a stage measured.

    Attributes:
        model: label of the base model.
        model_digest: sha256 of everything that makes its outputs.
        rope_theta: RoPE base frequency set; 0 = as shipped.
        context: the whole context extension, for people: ``as shipped``, ``theta 300000``, ``yarn x4``.
        recipe: name of the training recipe; without a checkpoint ``untuned`` (RoPE raised) or ``untuned_native``.
        recipe_digest: hash of its knobs; empty when untuned.
        contains_real: trained on at least one real example.
        seed: of the fine-tuning run; 0 when untuned.
        train_loss: final loss on the recipe's own data, nats per token; None when untuned.
        weight_change_norm: L2 norm of the change of the trained weights; None when untuned.
    """

    model: str
    model_digest: str
    rope_theta: float
    context: str = ""
    recipe: str = UNTUNED
    recipe_digest: str = ""
    contains_real: bool = False
    seed: int = 0
    train_loss: float | None = None
    weight_change_norm: float | None = None

    @property
    def is_untuned(self) -> bool:
        """Whether it was never fine-tuned."""
        return self.train_loss is None

    @property
    def label(self) -> str:
        """Which model of which arm, for people."""
        return f"{self.model}/{self.recipe}/seed{self.seed}"

    def tags(self) -> dict[str, str]:
        """Tags by which runs on this model are found."""
        return {
            "rhstudy.recipe": self.recipe,
            "rhstudy.model": self.model,
            "rhstudy.train_seed": str(self.seed),
        }


@contextmanager
def lent_subject(
    model: ModelConfig, context: ContextConfig, checkpoint: ArtifactFolder | None
) -> Iterator[tuple[LoadedModel, Subject]]:
    """The model for the length of the block, and what it is; errors as `load_model`."""
    folder = checkpoint.path if checkpoint else None
    with lent_model(model, context, folder) as loaded:
        yield loaded, _subject(loaded, context, folder)


def _subject(loaded: LoadedModel, context: ContextConfig, folder: Path | None) -> Subject:
    card = json.loads((folder / CHECKPOINT_CARD).read_text(encoding="utf-8")) if folder else {}
    known: Mapping[str, Any] = {key: card[key] for key in _CARD_KEYS if key in card}
    if not folder:
        known = {"recipe": UNTUNED_NATIVE if context.is_native else UNTUNED}
    about = {"rope_theta": context.rope_theta, "context": context.label, **known}
    return Subject(model=loaded.label, model_digest=loaded.digest, **about)


def write_subject(folder: Path, subject: Subject) -> None:
    """Write `subject.json` into `folder`."""
    values = {name: getattr(subject, name) for name in Subject.__slots__}
    (folder / SUBJECT).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_subject(artifacts: ArtifactFolder) -> Subject:
    """The subject of a detect or evaluate run.

    Raises:
        InputError: the artifacts hold no readable `subject.json`.
    """
    path = artifacts.file(SUBJECT)
    try:
        return Subject(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        remedy = "Give the run id or artifact folder of a detect or evaluate stage"
        raise InputError(message("subject.json", "describe a model", str(path), remedy)) from error


def require_stage(artifacts: ArtifactFolder, stage: str, name: str) -> None:
    """Check that `artifacts` come from `stage`.

    Raises:
        InputError: they come from another stage.
    """
    remedy = f"Give the run id or artifact folder of a {stage} stage"
    require(artifacts.stage == stage, name, f"come from {stage}", artifacts.stage, remedy, str(artifacts.path))
