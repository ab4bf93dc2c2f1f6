"""The detector: runs a model over examples and scores every head on each.

    from rhstudy import detect
    scores = detect(model, tokenizer, examples)            # HeadScores: per example, layer and head
    scores.mean(), scores.standard_error()

Four modes, each with its equation in its own module:

    teacher_forced    the gold answer is fed, one forward pass an example                  heads/score.py
    decode            the model's own greedy answer: one prefill, then a row a step        heads/score.py
    published_code    as the program of Wu et al. 2024 counts, each quirk a switch         heads/published_code.py
    attention_mass    attention on the needle because of the question                      heads/attention_mass.py

Answers that cite documents by number are scored, in the first two modes, by whether those very numbers are copied
(heads/citing.py); whether the cited documents' text is looked at goes into `HeadScores.further` as ``insight``.

A batch is launched before the scores of the one before are counted, so that a GPU never waits for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rhstudy.data.encode import ids_sha256
from rhstudy.errors import InputError, message, require
from rhstudy.heads.attention_mass import MassSettings, score_mass
from rhstudy.heads.checks import require_finite, require_sound
from rhstudy.heads.citing import is_citing, score_citations
from rhstudy.heads.published_code import PublishedQuirks, gate, score_published, stops
from rhstudy.heads.score import EMPTY_W, ExampleScore, Mode, score_rows
from rhstudy.models.anatomy import anatomy, base_model
from rhstudy.models.attention import make_observable
from rhstudy.models.batch import pad_batch
from rhstudy.models.decode import greedy
from rhstudy.models.generate import gold_nll, mean_answer_nll, prefill, run_rows, stop_token_ids
from rhstudy.models.gold_pass import GoldPasses, size_of
from rhstudy.models.load import LoadedModel
from rhstudy.models.probe import ArgmaxObserver, RoundedArgmaxObserver, observe
from rhstudy.models.transfer import fetched_later
from rhstudy.shapes import Int
from rhstudy.types import Example, HeadScores

MODES: tuple[Mode, ...] = ("teacher_forced", "decode", "published_code", "attention_mass")
DECODE_STEPS, PUBLISHED_STEPS = 32, 50
Finish = Callable[[], list[ExampleScore]]
"""Waits for the device and counts the scores of one batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """How heads are scored.

    Attributes:
        mode: see the module docstring.
        batch_size: examples per pass; does not change results beyond float rounding.
        chunk_tokens: prefill in chunks of this many tokens; 0 = one pass.
        max_new_tokens: longest decoded answer; 0 = as many as the published program (50) in its mode, 32 in others.
        published: which quirks are on, in mode `published_code`.
        mass: null query and outliers, in mode `attention_mass`.
        cuda_graphs: let a GPU replay teacher-forced passes that it would else wait for; False runs each from Python.
    """

    mode: Mode | str = "teacher_forced"
    batch_size: int = 1
    chunk_tokens: int = 0
    max_new_tokens: int = 0
    published: PublishedQuirks = field(default_factory=PublishedQuirks)
    mass: MassSettings = field(default_factory=MassSettings)
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        for name, mode, unset in (
            ("published", "published_code", PublishedQuirks()),
            ("mass", "attention_mass", MassSettings()),
        ):
            unused = self.mode != mode and getattr(self, name) != unset
            require(not unused, name, f"be left out in mode {self.mode}", getattr(self, name), f"It is for mode {mode}")
        require(self.batch_size >= 1, "batch_size", "be at least 1", self.batch_size, "Use 1 for the longest contexts")
        require(self.mode in MODES, "mode", f"be one of {', '.join(MODES)}", self.mode, "Choose one")
        require(self.chunk_tokens >= 0, "chunk_tokens", "be at least 0", self.chunk_tokens, "0 = one pass")
        require(self.max_new_tokens >= 0, "max_new_tokens", "be at least 0", self.max_new_tokens, "0 = by mode")

    @property
    def longest_answer(self) -> int:
        """Tokens decoded at most: those asked for, else the published program's 50 in its mode and 32 in others."""
        return self.max_new_tokens or (PUBLISHED_STEPS if self.mode == "published_code" else DECODE_STEPS)

    @property
    def feeds_gold(self) -> bool:
        """Whether the gold answer is fed (one pass), not the model's own."""
        return self.mode == "teacher_forced" or (self.mode == "published_code" and not self.published.decoded_answer)


def detect(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example] | Example,
    *,
    mode: Mode | str = "teacher_forced",
    batch_size: int = 1,
    chunk_tokens: int = 0,
    max_new_tokens: int = 0,
    published: PublishedQuirks | None = None,
    mass: MassSettings | None = None,
    cuda_graphs: bool = True,
    label: str = "",
    model_digest: str = "",
    data_digest: str = "",
    seed: int = 0,
    done: Mapping[str, ExampleScore] | None = None,
    on_scored: Callable[[Sequence[ExampleScore]], None] = lambda _: None,
) -> HeadScores:
    """Score every attention head of `model` on `examples`.

    Contexts may be as long as the model itself can take. A PEFT-wrapped model is scored with its adapter, on several
    devices where `device_map` put it. It is left routed through the observed attention: SDPA while nobody looks.

    Args:
        model: a decoder in eval mode, PEFT-wrapped or not; see `require_observable` for which.
        tokenizer: its fast tokenizer, the one the examples were built with.
        examples: prompts with their needle spans (see `rhstudy.make_example` for your own).
        mode, batch_size, chunk_tokens, max_new_tokens, published, mass, cuda_graphs: see `Detector`.
        label: what the scores call the model; empty takes the name it was loaded by.
        model_digest: sha256 of the weights when known; empty for a model that exists in memory alone.
        data_digest: sha256 of the data set; empty takes that of the prompts' token ids.
        seed: recorded with the scores.
        done: scores of finished examples by example id; they are not run again.
        on_scored: called with the scores of each finished batch, for progress and for saving.

    Returns:
        Scores of every example in the order given; see `HeadScores` for units, NaN and reasons.

    Raises:
        InputError: no examples, a bad setting, or a model whose heads cannot be observed exactly.
    """
    base = base_model(model)
    detector = Detector(
        mode=mode, batch_size=batch_size, chunk_tokens=chunk_tokens, max_new_tokens=max_new_tokens,
        published=published or PublishedQuirks(), mass=mass or MassSettings(), cuda_graphs=cuda_graphs,
    )  # fmt: skip
    if isinstance(examples, Example):
        raise InputError(message("examples", "be several", "<one Example>", "Pass a list: [example]"))
    examples = list(examples)
    require_sound(base, examples)
    name = label or str(getattr(base.config, "name_or_path", "")) or type(base).__name__
    loaded = LoadedModel(model=base, tokenizer=tokenizer, layout=anatomy(base), label=name, digest=model_digest)
    marks = dict(done or {})
    for group in run_detector(loaded, examples, detector, is_done=marks.__contains__):
        on_scored(group)
        marks.update({mark.example_id: mark for mark in group})
    finished = [marks[example.example_id] for example in examples]
    digest = data_digest or ids_sha256([token for example in examples for token in example.prompt_ids])
    return gather_scores(finished, loaded, data_digest=digest, mode=mode, seed=seed)


def gather_scores(
    marks: Sequence[ExampleScore], loaded: LoadedModel, *, data_digest: str, mode: str, seed: int
) -> HeadScores:
    """Stack per-example marks, in the order given, into `HeadScores`.

    Raises:
        InputError: no example was given.
    """
    require(bool(marks), "examples", "be at least one", 0, "Check the data set and its split")
    return HeadScores(
        score=np.stack([mark.score for mark in marks]),
        aligned=np.stack([mark.aligned for mark in marks]),
        example_ids=tuple(mark.example_id for mark in marks),
        unscored={mark.example_id: mark.unscored for mark in marks if mark.unscored},
        real_nll=np.asarray([mark.real_nll for mark in marks]),
        further=_stacked(marks),
        model=loaded.label,
        model_digest=loaded.digest,
        data_digest=data_digest,
        mode=mode,
        seed=seed,
    )


def _stacked(marks: Sequence[ExampleScore]) -> dict[str, np.ndarray]:
    """Further measures by name; NaN for the examples that have none of that name."""
    none = np.full_like(marks[0].score, np.nan)
    names = sorted({name for mark in marks for name in mark.further})
    return {name: np.stack([np.asarray(mark.further.get(name, none)) for mark in marks]) for name in names}


def run_detector(
    loaded: LoadedModel,
    examples: Sequence[Example],
    detector: Detector,
    *,
    is_done: Callable[[str], bool] = lambda _: False,
) -> Iterator[list[ExampleScore]]:
    """Score every head on every example, a batch at a time, each batch launched before the last one is counted.

    Args:
        loaded: the model; its attention is routed through the observer.
        examples: what to score on.
        detector: how.
        is_done: tells which example ids were scored before; a batch is skipped when all of its examples were.

    Yields:
        The scores of each batch, in order.

    Raises:
        InputError: the model's heads cannot be observed exactly.
    """
    make_observable(loaded.model)
    groups = [examples[start : start + detector.batch_size] for start in range(0, len(examples), detector.batch_size)]
    groups = [group for group in groups if not all(is_done(example.example_id) for example in group)]
    launch = _launcher(loaded, groups, detector)
    waiting: Finish | None = None
    for group in groups:
        try:
            finish = launch(group)
        except Exception:
            if waiting is not None:
                yield waiting()  # what is finished is not lost with what fails
            raise
        if waiting is not None:
            yield waiting()
        waiting = finish
    if waiting is not None:
        yield waiting()


def _launcher(
    loaded: LoadedModel, groups: Sequence[Sequence[Example]], detector: Detector
) -> Callable[[Sequence[Example]], Finish]:
    """What starts one batch in this mode."""
    if detector.mode == "attention_mass":
        return lambda group: _score_mass(loaded, group, detector)
    if not detector.feeds_gold:
        return lambda group: _launch_decode(loaded, group, detector)
    if detector.chunk_tokens:
        return lambda group: _launch_chunked(loaded, group, detector)
    passes = GoldPasses(
        loaded.model,
        pad_id=loaded.pad_id,
        observer_type=_observer_type(detector),
        sizes=[(len(group), *size_of(*_fed(group))) for group in groups],
        cuda_graphs=detector.cuda_graphs,
    )
    return lambda group: _launch_gold(loaded, group, detector, passes)


def _score_mass(loaded: LoadedModel, group: Sequence[Example], detector: Detector) -> Finish:
    marks = score_mass(loaded, group, detector.mass, chunk_tokens=detector.chunk_tokens)
    return lambda: marks


def _observer_type(detector: Detector) -> type[ArgmaxObserver]:
    rounded = detector.mode == "published_code" and detector.published.model_dtype_weights
    return RoundedArgmaxObserver if rounded else ArgmaxObserver


def _fed(group: Sequence[Example]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    return [example.prompt_ids for example in group], [example.answer_ids for example in group]


@torch.inference_mode()
def _launch_gold(loaded: LoadedModel, group: Sequence[Example], detector: Detector, passes: GoldPasses) -> Finish:
    prompts, answers = _fed(group)
    arrived = passes.launch(prompts, answers)
    return lambda: _finish_gold(loaded, group, detector, arrived, [0] * len(group))


@torch.inference_mode()
def _launch_chunked(loaded: LoadedModel, group: Sequence[Example], detector: Detector) -> Finish:
    prompts, answers = _fed(group)
    batch = pad_batch(prompts, answers, loaded.pad_id, loaded.model.device)
    first = batch.num_prompt - 1
    observer = _observer_type(detector)(range(first, first + batch.num_answer))
    with observe(loaded.model, observer):
        logits = run_rows(loaded.model, batch, first_row=first, chunk_tokens=detector.chunk_tokens, observer=observer)
    argmax = observer.argmax()
    arrived = fetched_later(argmax, mean_answer_nll(logits, answers, batch.ids[:, first + 1 :]).to(argmax.device))
    return lambda: _finish_gold(loaded, group, detector, arrived, batch.pads)


def _finish_gold(
    loaded: LoadedModel,
    group: Sequence[Example],
    detector: Detector,
    arrived: Callable[[], list[torch.Tensor]],
    pads: Sequence[int],
) -> list[ExampleScore]:
    positions, losses = arrived()
    require_finite(losses, group)
    return _marks(loaded, pads, group, positions.numpy(), _fed(group)[1], losses.tolist(), detector)


@torch.inference_mode()
def _launch_decode(loaded: LoadedModel, group: Sequence[Example], detector: Detector) -> Finish:
    published = detector.mode == "published_code" and detector.published.published_stops
    if published:
        ends = stops(detector.published, loaded.tokenizer.get_vocab())
    else:
        ends = stop_token_ids(loaded.model, loaded.tokenizer.eos_token_id)
    prompts = [example.prompt_ids for example in group]
    batch = pad_batch(prompts, [[]] * len(group), loaded.pad_id, loaded.model.device)
    last = batch.num_prompt - 1
    observer = _observer_type(detector)(range(last, last + detector.longest_answer))
    with observe(loaded.model, observer):
        start = prefill(loaded.model, batch, chunk_tokens=detector.chunk_tokens, observer=observer)
    require_finite(start.logits[:, 0].sum(dim=-1), group)
    losses = gold_nll(loaded.model, start, _fed(group)[1]).tolist()
    with observe(loaded.model, observer):
        answers = greedy(
            loaded.model,
            start,
            max_new_tokens=detector.longest_answer,
            stop_ids=ends,
            keep_stop=published,
            observer=observer,
        )
    if not published:
        answers = [first_line(tokens, loaded.tokenizer.decode) for tokens in answers]
    arrived = fetched_later(observer.argmax(max(map(len, answers))))
    return lambda: _marks(loaded, batch.pads, group, arrived()[0].numpy(), answers, losses, detector)


def first_line(tokens: Sequence[int], decode: Callable[[list[int]], object]) -> list[int]:
    """The generated tokens before the first line break: what is marked as the answer, and no more, is scored."""
    for count in range(1, len(tokens) + 1):
        text = str(decode(list(tokens[:count])))
        if "\n" in text or "\r" in text:
            return list(tokens[: count - 1])
    return list(tokens)


def _marks(
    loaded: LoadedModel,
    pads: Sequence[int],
    group: Sequence[Example],
    argmax: Int[np.ndarray, "layers batch heads rows"],
    answers: Sequence[Sequence[int]],
    losses: Sequence[float],
    detector: Detector,
) -> list[ExampleScore]:
    marks = []
    for row, (example, tokens) in enumerate(zip(group, answers, strict=True)):
        positions, further = argmax[:, row, :, : len(tokens)] - pads[row], {}
        if detector.mode == "published_code":
            score, reason = _published(loaded, positions, tokens, example, detector.published)
            aligned = np.full_like(score, np.nan)  # the program has no such thing
        elif is_citing(example):
            score, insight, reason = score_citations(positions, tokens, example, loaded.tokenizer.decode)
            aligned, further = score, {"insight": insight}  # a number is copied from its one place or not at all
        else:
            fed: Mode = "teacher_forced" if detector.feeds_gold else "decode"
            score, aligned = score_rows(positions, tokens, example, fed)
            reason = EMPTY_W if np.isnan(score).any() else ""
        name, nll = example.example_id, losses[row]
        marks.append(
            ExampleScore(example_id=name, score=score, aligned=aligned, real_nll=nll, unscored=reason, further=further)
        )
    return marks


def _published(
    loaded: LoadedModel,
    positions: Int[np.ndarray, "layers heads rows"],
    tokens: Sequence[int],
    example: Example,
    quirks: PublishedQuirks,
) -> tuple[np.ndarray, str]:
    needle_ids = loaded.tokenizer(example.answer.strip(), add_special_tokens=False)["input_ids"]
    score, reason = score_published(positions, tokens, example, quirks, needle_ids)
    if quirks.rouge_gate and not reason:
        reason = gate(example, str(loaded.tokenizer.decode(list(tokens), skip_special_tokens=True)))
    return (np.full_like(score, np.nan), reason) if reason else (score, "")
