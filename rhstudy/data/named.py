"""Public data sets by name: a local copy where there is one, else the public file, fetched once and checked.

``data.train_file = "mdqa"`` stands for NQ-Open questions with their gold Wikipedia passage (Liu et al. 2023, "Lost in
the Middle", arXiv 2307.03172). Local copies are looked for in ``$RHSTUDY_DATA``, then in ``../shared/data``; they have
a cut of their own into train and eval and a pool of passages. The public file has neither: all parts are cut from it,
haystacks are made of its own gold passages, and its rows without their answer in the passage are skipped and counted.
So for ``musique``, ``two_wiki_multihop``, ``hotpotqa`` (all of task musique) and ``summhay``; without local copies
their public splits come from the hub through `datasets`. ``data.train_file = "python-docs"`` needs no file and no
network; see `rhstudy.data.python_docs`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rhstudy.configs import file_sha256
from rhstudy.data.config import DataConfig
from rhstudy.data.python_docs import NAME as PYTHON_DOCS
from rhstudy.data.python_docs import python_docs_file
from rhstudy.errors import InputError, message
from rhstudy.hub import told, why_away

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicData:
    """Where a named data set is found.

    Attributes:
        train: path of its training rows below a folder of local copies.
        eval: path of its evaluation rows; empty cuts them from `train`.
        passages: path of a pool of passages; empty makes haystacks of the rows' own.
        url: the public file; empty where it comes from the hub.
        sha256: of the public file.
        hub_train: hub reference of its training rows.
        hub_eval: hub reference of its evaluation rows; empty cuts them from the training rows.
    """

    train: str
    eval: str = ""
    passages: str = "wikipedia_passages/passages.jsonl"
    url: str = ""
    sha256: str = ""
    hub_train: str = ""
    hub_eval: str = ""


NAMED_DATA: dict[str, PublicData] = {
    "mdqa": PublicData(
        train="mdqa/train.jsonl",
        eval="mdqa/eval.jsonl",
        url="https://raw.githubusercontent.com/nelson-liu/lost-in-the-middle/29b8a6d/qa_data/nq-open-oracle.jsonl.gz",
        sha256="6a7f72b846f663a133ef952244e5a4e43f06bcf190afe34e8fbe687ce0d1653e",
    ),
    "musique": PublicData(
        train="musique/train.jsonl",
        eval="musique/eval.jsonl",
        hub_train="hub:dgslibisey/MuSiQue@train",
        hub_eval="hub:dgslibisey/MuSiQue@validation",
    ),
    "two_wiki_multihop": PublicData(
        train="two_wiki_multihop/train.jsonl",
        eval="two_wiki_multihop/eval.jsonl",
        hub_train="hub:framolfese/2WikiMultihopQA@train",
        hub_eval="hub:framolfese/2WikiMultihopQA@validation",
    ),
    "hotpotqa": PublicData(
        train="hotpotqa/train.jsonl",
        hub_train="hub:hotpotqa/hotpot_qa:distractor@train",
        hub_eval="hub:hotpotqa/hotpot_qa:distractor@validation",
    ),
    "summhay": PublicData(train="summhay", passages="", hub_train="hub:Salesforce/summary-of-a-haystack@train"),
}


SKIPPING = ("musique", "two_wiki_multihop", "hotpotqa")
"""Data sets with rows that cannot be used (yes and no are no answers to retrieve): those are skipped and counted."""


def local_copies() -> Path | None:
    """The folder of local copies: ``$RHSTUDY_DATA``, else ``../shared/data`` where it exists, else None."""
    chosen = os.environ.get("RHSTUDY_DATA")
    if chosen:
        return Path(chosen)
    beside = Path.cwd().parent / "shared" / "data"
    return beside if beside.is_dir() else None


def with_named_sources(config: DataConfig, cache: Path) -> DataConfig:
    """`config` with a name in `train_file` replaced by files; options given beside the name are kept.

    Args:
        config: as the user gave it; without a known name it comes back as it is.
        cache: folder for fetched files.

    Raises:
        InputError: the public file cannot be fetched, or is not the recorded one; this Python has no documentation
            topics.
    """
    if config.train_file == PYTHON_DOCS:
        return dataclasses.replace(config, train_file=str(python_docs_file(cache)), on_bad_row="skip")
    known = NAMED_DATA.get(config.train_file)
    if known is None:
        return config
    root = local_copies()
    if root is not None and (root / known.train).exists():
        _log.info("data set %s: local copies in %s", config.train_file, root)
        return dataclasses.replace(
            config,
            train_file=str(root / known.train),
            eval_file=config.eval_file or (str(root / known.eval) if known.eval else ""),
            passages_file=config.passages_file or (str(root / known.passages) if known.passages else ""),
            on_bad_row="skip" if config.train_file in SKIPPING else config.on_bad_row,
        )
    if known.hub_train:
        _log.info("data set %s: %s", config.train_file, known.hub_train)
        eval_file = config.eval_file or known.hub_eval
        return dataclasses.replace(config, train_file=known.hub_train, eval_file=eval_file, on_bad_row="skip")
    fetched = _fetch(config.train_file, known, cache)
    _log.info("data set %s: public file %s", config.train_file, known.url)
    return dataclasses.replace(config, train_file=str(fetched), on_bad_row="skip")


def _fetch(name: str, known: PublicData, cache: Path) -> Path:
    target = cache / "data" / known.url.rsplit("/", 1)[-1]
    if not target.is_file():
        downloaded = _downloaded(name, known)
        found = file_sha256(downloaded)
        if found != known.sha256:
            remedy = "The public file changed since it was recorded; give data.train_file a path instead"
            raise InputError(message(f"sha256 of {name}", f"be {known.sha256}", found, remedy, known.url))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        shutil.copyfile(downloaded, part)
        os.replace(part, target)
    return target


def _downloaded(name: str, known: PublicData) -> Path:
    """The public file, where `datasets` left it; asked for only where the server answers, or it would wait minutes."""
    import datasets

    away = why_away(known.url)
    if not away:
        try:
            return Path(str(datasets.DownloadManager().download(known.url)))
        except Exception as error:  # the library raises many kinds, all of which mean: not to be had
            away = told(known.url, error)
    remedy = f"Set RHSTUDY_DATA to a folder that holds {known.train}, or give data.train_file a path"
    must = "have a local copy or a public file that can be reached"
    raise InputError(message("data.train_file", must, name, remedy, away))
