"""What `make-data` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rhstudy.configs import INPUT, NO_DIGEST
from rhstudy.data.knobs import REAL, Knobs, preset
from rhstudy.data.splits import PARTS
from rhstudy.data.tasks.reading import OnBadRow
from rhstudy.data.tasks.registry import TaskName
from rhstudy.errors import require

Part = Literal["train", "score", "dev", "eval"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What to build.

    Attributes:
        task: ``mdqa``: one gold passage answers; ``musique``: several hops do; ``summhay``: documents that hold an
            insight are cited; ``own``: rows of question, answers and documents; ``cue_retrieval``: literal cue
            retrieval over passages.
        recipe: name of a preset recipe for `train`; empty means ``real``, or `knobs` where they are given.
        knobs: a recipe of one's own, instead of a preset.
        train_file: rows for train, score and dev (and eval, without `eval_file`): a path,
            ``hub:NAME[:SUBSET][@SPLIT]``, a known data set (``mdqa``, ``musique``, ``two_wiki_multihop``,
            ``hotpotqa``, ``summhay``), or ``python-docs`` (passages found on every machine, for ``cue_retrieval``).
        eval_file: rows for eval; also keeps them out of the other parts, so give it for every part.
        passages_file: passages for haystacks (`title`, `text`); empty uses the rows' own gold passages.
        rewritten_file: recording of rewritten needles (`rhstudy rewrite`); empty takes the one of this package.
        parts: which parts to build.
        num_tokens: prompt length in tokens; every prompt has at most this and at least 16 fewer, after
            `num_reserved_tokens` are set aside.
        num_reserved_tokens: tokens kept free for the answer when `num_tokens` is a hard limit of the model.
        num_examples: size of train.
        num_distinct: distinct rows (or invented facts) that train is made of, each used again with new padding; 0 = as
            many as there are. A study takes what every one of its recipes has.
        num_score: rows of score, 0 = all; the same for `num_dev` and `num_eval`.
        num_dev: rows of dev.
        num_eval: rows of eval.
        split_seed: cuts the parts and draws score, dev and eval; one for a whole study.
        seed: draws train.
        on_bad_row: ``error`` ends the build at the first row that cannot become an example; ``skip`` counts it.
        min_answer_in_needle_share: least share of answer tokens whose id occurs in the needle, per part.
        num_workers: processes that build prompts; 1 = this one alone, 0 = two (where there are two cores) for a part of
            8 million tokens and more, else this one. No influence on results.
    """

    task: TaskName = "mdqa"
    recipe: str = ""
    knobs: Knobs | None = None
    train_file: str = field(default="", metadata=INPUT)
    eval_file: str = field(default="", metadata=INPUT)
    passages_file: str = field(default="", metadata=INPUT)
    rewritten_file: str = field(default="", metadata=INPUT)
    parts: tuple[Part, ...] = ("train",)
    num_tokens: int = 1024
    num_reserved_tokens: int = 0
    num_examples: int = 320
    num_distinct: int = 0
    num_score: int = 0
    num_dev: int = 0
    num_eval: int = 0
    split_seed: int = 0
    seed: int = 0
    on_bad_row: OnBadRow = "error"
    min_answer_in_needle_share: float = 0.9
    num_workers: int = field(default=0, metadata=NO_DIGEST)

    def __post_init__(self) -> None:
        for name, least in (("num_tokens", 64), ("num_examples", 1), ("num_reserved_tokens", 0), ("num_workers", 0)):
            value = getattr(self, name)
            require(value >= least, f"data.{name}", f"be at least {least}", value, "Raise it")
        for name in ("num_distinct", "num_score", "num_dev", "num_eval", "split_seed", "seed"):
            value = getattr(self, name)
            require(value >= 0, f"data.{name}", "be 0 or more", value, "Give a count or seed")
        most, remedy = self.num_examples, "An example states one"
        require(self.num_distinct <= most, "data.num_distinct", f"be at most data.num_examples ({most})",
                self.num_distinct, remedy)  # fmt: skip
        share = self.min_answer_in_needle_share
        require(0 <= share <= 1, "data.min_answer_in_needle_share", "be in [0, 1]", share, "Give a share")
        known = bool(self.parts) and set(self.parts) <= set(PARTS) and len(set(self.parts)) == len(self.parts)
        require(known, "data.parts", f"name some of {', '.join(PARTS)}", self.parts, "Name each at most once")
        one = not (self.recipe and self.knobs)
        require(one, "data.recipe", "be empty when data.knobs is given", self.recipe, "Give one of the two")
        require(bool(self.train_file), "data.train_file", "be given", self.train_file, "Name a JSONL file of rows")
        _ = self.resolved_knobs

    @property
    def resolved_knobs(self) -> Knobs:
        """The recipe of `train`."""
        return self.knobs if self.knobs is not None else preset(self.recipe or REAL.name, self.task)

    def num_wanted(self, part: str) -> int:
        """Examples asked of `part`; 0 = all rows."""
        sizes = {"train": self.num_examples, "score": self.num_score, "dev": self.num_dev, "eval": self.num_eval}
        return sizes[part]
