"""A tiny world for end-to-end tests: invented people as MDQA files, and a random model in hub layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

VOCABULARY = 400
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
FRAME_WORDS = (
    "Write a short answer to the question, using only the documents below (most of which are irrelevant).",
    "Each line below gives a key and its value. Answer the question with the value alone.",
    "Document [1](Title: Document [2](Title: Document [3](Title: Question: Answer: user assistant",
)
_STARTS = ("Bel", "Cor", "Dan", "Fen", "Gil", "Hal", "Jor", "Kem", "Lor", "Mir", "Nor", "Pel", "Ros", "Tam", "Ven")
_ENDS = ("ava", "bert", "dine", "ello", "fred", "gard", "inus", "mond", "ora", "wick")
_TRADES = ("painter", "sailor", "teacher", "farmer", "miller", "singer")


def _word(number: int) -> str:
    return _STARTS[number % len(_STARTS)] + _ENDS[number // len(_STARTS) % len(_ENDS)]


def person(number: int) -> dict[str, Any]:
    """An MDQA row on invented person `number`; titles, answers and texts differ between numbers below 150."""
    name, town = f"{_word(number)} {_word(number * 7 + 3)}", f"{_word(number)}burg"
    teacher = f"{_word(number + 5)} {_word(number + 11)}son"
    asks_town = number % 2 == 0
    trade = _TRADES[number % len(_TRADES)]
    return {
        "id": f"person-{number}",
        "question": f"where was {name} born" if asks_town else f"who taught {name}",
        "answers": [town] if asks_town else [teacher],
        "title": name,
        "gold_text": f"{name} was a {trade}, born in {town}, and was taught by {teacher}.",
    }


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_data(folder: Path) -> Path:
    """``train.jsonl`` (60 rows), ``eval.jsonl`` (12), ``passages.jsonl`` (70), all about different people."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", map(person, range(60)))
    write_rows(folder / "eval.jsonl", map(person, range(60, 72)))
    others = (
        {"pid": row["id"], "title": row["title"], "text": row["gold_text"]} for row in map(person, range(72, 142))
    )
    write_rows(folder / "passages.jsonl", others)
    return folder


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 400 tokens trained on the invented people, with a ChatML template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{row['title']}) {row['gold_text']} {row['question']}" for row in map(person, range(142))]
    backend.train_from_iterator([*texts, *(FRAME_WORDS * 40)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=CHATML
    )


def tiny_llama_config(**changes: Any) -> PretrainedConfig:
    """Two layers of four heads (two key/value heads), 1,024 positions."""
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return LlamaConfig(**{**values, **changes})


def write_model(folder: Path, config: PretrainedConfig | None = None, seed: int = 0, peak: float = 3.0) -> Path:
    """A random model of `config` with our tokenizer in hub layout; weights `peak` times larger let heads differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config or tiny_llama_config())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    parameter.mul_(peak)
    model.save_pretrained(folder)
    bpe_tokenizer().save_pretrained(folder)
    return folder


def write_train_data(folder: Path, world: Path, *, num_tokens: int, num_examples: int) -> Path:
    """Training rows for the model of `world`, haystacks of repeated text; the artifact folder of `make-data`."""
    from rhstudy.configs import ModelConfig, TrackingConfig
    from rhstudy.data.config import DataConfig
    from rhstudy.data.knobs import Knobs
    from rhstudy.stages import make_data
    from rhstudy.tracking.folder_recorder import FolderRecorder

    data = DataConfig(
        knobs=Knobs(name="real_in_filler", context_diversity="repeated_filler"),
        train_file=str(world / "data" / "train.jsonl"),
        num_tokens=num_tokens,
        num_examples=num_examples,
    )
    model = ModelConfig(name=str(world / "model"), cache_dir=str(folder / "cache"), device="cpu")
    tracking = TrackingConfig(recorder="folder", work_dir=str(folder / "work"))
    config = make_data.MakeDataConfig(data=data, model=model, tracking=tracking)
    return make_data.run(config, FolderRecorder(folder / "runs")).artifacts.path


def write_checkpoint(
    folder: Path, weights: Mapping[str, torch.Tensor], model: Any, adapter: Mapping[str, int] | None = None, **card: Any
) -> Path:
    """`weights` as `finetune` leaves them for the model of config `model`; with `adapter` (rank, alpha), PEFT's."""
    from safetensors.torch import save_file

    from rhstudy.models.adapters import save_adapter
    from rhstudy.models.load import CHECKPOINT_CARD, CHECKPOINT_WEIGHTS, base_model_digest

    base = Path(model.name)
    folder.mkdir(exist_ok=True)
    if adapter is None:
        save_file(dict(weights), folder / CHECKPOINT_WEIGHTS)
    else:
        save_adapter(folder, weights, base=base.name, **adapter)
    facts = {
        "base_digest": base_model_digest(base, model),
        "base_model": base.name,
        "rope_theta": 0.0,
        "quantization": model.quantization,
    }
    (folder / CHECKPOINT_CARD).write_text(json.dumps(facts | card))
    return folder
