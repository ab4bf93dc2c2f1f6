"""A chat model behind an OpenAI-compatible endpoint (`POST {url}/chat/completions`): a local server or a service."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from rhstudy.errors import StudyError, masked, message
from rhstudy.models.writer import SamplingSettings

KEY_VARIABLE = "RHSTUDY_API_KEY"
"""Environment variable with the endpoint's key, when it wants one; keys are never part of a config or recording."""
NUM_RETRIES = 5
"""Tries again after an answer that broke off, 429 and 5xx, waiting twice as long each time; none where no server is."""


@dataclass(slots=True)
class EndpointWriter:
    """An endpoint as a `rhstudy.data.rewriting.Writer`.

    Texts follow from seeds as far as the server honours ``seed``; the recording keeps what it said.

    Attributes:
        url: up to and without ``/chat/completions``, for instance ``http://localhost:8000/v1``.
        model: as the server calls it.
        sampling: temperature and length; `top_k` is not part of the protocol and is left out.
        num_parallel: requests at a time.
        timeout_s: longest wait for one answer.
        backoff_s: wait before the first retry.
    """

    url: str
    model: str
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    num_parallel: int = 8
    timeout_s: float = 120.0
    backoff_s: float = 0.5

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model's name and how it draws; not where it runs."""
        sampling = self.sampling
        return {
            "model": self.model,
            "digest": "unknown: behind an endpoint",
            "temperature": sampling.temperature,
            "max_new_tokens": sampling.max_new_tokens,
        }

    def write(self, chats: Sequence[Sequence[Mapping[str, str]]], seeds: Sequence[int]) -> list[str]:
        """One text per chat.

        Raises:
            StudyError: the endpoint cannot be reached, refuses, or answers with something else.
        """
        with requests.Session() as session, ThreadPoolExecutor(self.num_parallel) as pool:
            retry = Retry(
                NUM_RETRIES, connect=0, backoff_factor=self.backoff_s, status_forcelist=(429, 500, 502, 503, 504),
                allowed_methods=("POST",), raise_on_status=False,
            )  # fmt: skip
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=self.num_parallel))
            key = os.environ.get(KEY_VARIABLE)
            if key:
                session.headers["Authorization"] = f"Bearer {key}"
            return list(pool.map(lambda chat, seed: self._one(session, chat, seed), chats, seeds))

    def _one(self, session: requests.Session, chat: Sequence[Mapping[str, str]], seed: int) -> str:
        body: Any = {
            "model": self.model,
            "messages": [dict(turn) for turn in chat],
            "temperature": self.sampling.temperature,
            "max_tokens": self.sampling.max_new_tokens,
            "seed": seed % 2**31,
        }
        where = masked(self.url)
        try:
            answer = session.post(f"{self.url.rstrip('/')}/chat/completions", json=body, timeout=self.timeout_s)
        except requests.RequestException as error:
            remedy = "Start the server or check the address; the same command goes on where it stopped"
            raise StudyError(message("writer.url", "answer", f"<{type(error).__name__}>", remedy, where)) from error
        if not answer.ok:
            remedy = f"Check model and key (${KEY_VARIABLE}); it says: {answer.text[:120]!r}"
            raise StudyError(
                message("writer.url", "accept the request", f"<status {answer.status_code}>", remedy, where)
            )
        try:
            return str(answer.json()["choices"][0]["message"]["content"]).strip()
        except (ValueError, KeyError, IndexError, TypeError) as error:
            remedy = "Use an OpenAI-compatible endpoint"
            must = "answer with choices[0].message.content"
            raise StudyError(message("writer.url", must, answer.text[:80], remedy, where)) from error
