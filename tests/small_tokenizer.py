"""A tokenizer that other processes can be given without transformers, which takes seconds to import."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer


class SmallTokenizer:
    """What data building uses of a fast tokenizer, around one of the library tokenizers."""

    chat_template = None
    is_fast = True

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend

    def __call__(self, text: Any, *, add_special_tokens: bool = True, **options: Any) -> dict[str, Any]:
        del options
        texts = [text] if isinstance(text, str) else text
        found = self.backend_tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        many = {"input_ids": [one.ids for one in found], "offset_mapping": [one.offsets for one in found]}
        return {key: values[0] for key, values in many.items()} if isinstance(text, str) else many

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        raise NotImplementedError("no template")

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False, **options: Any) -> str:
        del options
        return str(self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))
