"""A small byte-level BPE tokenizer of one's own, trained on the text a small model is pretrained on."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rhstudy.errors import require

END_TOKEN = "<|end|>"
NUM_BYTES = 256


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; bytes as in GPT-2) without a chat template.

    Args:
        texts: training text; the same text gives the same tokenizer.
        vocabulary_size: tokens, the 256 bytes and the end token included.
        max_tokens: context length written into the tokenizer's config.

    Raises:
        InputError: `vocabulary_size` leaves no room for a merge.
    """
    must = f"be more than {NUM_BYTES + 1}"
    require(vocabulary_size > NUM_BYTES + 1, "vocabulary_size", must, vocabulary_size, "Use about 4,096")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END_TOKEN],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token=END_TOKEN, pad_token=END_TOKEN, model_max_length=max_tokens
    )
