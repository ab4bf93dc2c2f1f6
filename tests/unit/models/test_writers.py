"""Writers of rewritten needles: a local model draws from seeds alone; an endpoint is asked as the protocol says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from rhstudy.configs import ModelConfig
from rhstudy.data.rewriting import Writer
from rhstudy.errors import InputError, StudyError
from rhstudy.models import writer as writer_module
from rhstudy.models.endpoint import KEY_VARIABLE, EndpointWriter
from rhstudy.models.writer import LocalWriter, SamplingSettings, SeededDraw

CHATS = [
    [{"role": "system", "content": "Reword."}, {"role": "user", "content": f"Fact {number}."}] for number in range(5)
]
SEEDS = [11, 22, 33, 44, 55]


class Server(ThreadingHTTPServer):
    """An endpoint that repeats the fact; `plan` gives the status of the next answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.plan: list[int] = []
        self.body: bytes | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.server.plan.pop(0) if self.server.plan else 200
        self.server.seen.append({"path": self.path, **asked})
        self.server.keys.append(self.headers.get("Authorization"))
        text = f" Reworded {asked['messages'][-1]['content']} with seed {asked['seed']} "
        answer = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer if self.server.body is None else self.server.body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_an_endpoint_is_asked_as_the_protocol_says(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret-key")
    writer = EndpointWriter(f"{server.url}/", "some-model", SamplingSettings(temperature=0.5, max_new_tokens=9))
    assert isinstance(writer, Writer)
    assert writer.write(CHATS, SEEDS) == [f"Reworded Fact {n}. with seed {s}" for n, s in enumerate(SEEDS)]
    asked = sorted(server.seen, key=lambda body: body["seed"])[0]
    assert asked == {
        "path": "/v1/chat/completions", "model": "some-model", "messages": CHATS[0], "temperature": 0.5,
        "max_tokens": 9, "seed": 11,
    }  # fmt: skip
    assert set(server.keys) == {"Bearer secret-key"}
    assert "secret-key" not in json.dumps(dict(writer.identity))


def test_busy_and_broken_answers_are_tried_again(server: Server) -> None:
    server.plan = [503, 429, 500]
    writer = EndpointWriter(server.url, "m", num_parallel=1, backoff_s=0.0)
    assert writer.write(CHATS[:1], SEEDS[:1]) == ["Reworded Fact 0. with seed 11"]
    assert len(server.seen) == 4


def test_refusals_say_what_the_endpoint_said(server: Server) -> None:
    server.plan, server.body = [401], b"no such key"
    with pytest.raises(StudyError, match=r"writer\.url must accept the request, got <status 401>.*no such key"):
        EndpointWriter(server.url, "m").write(CHATS[:1], SEEDS[:1])
    server.body = b'{"choices": []}'
    with pytest.raises(StudyError, match=r"writer\.url must answer with choices\[0\]\.message\.content"):
        EndpointWriter(server.url, "m").write(CHATS[:1], SEEDS[:1])


def test_no_server_is_said_so() -> None:
    with pytest.raises(StudyError, match=r"writer\.url must answer, got <ConnectionError>.*Start the server"):
        EndpointWriter("http://127.0.0.1:9/v1", "m", backoff_s=1e3).write(CHATS, SEEDS)  # at once, without a wait


TEMPLATE = "{% for message in messages %}w1 {{ message['content'] }} w2 {% endfor %}w3"
WORDS = [[{"role": "user", "content": f"w4 w5 w6 w{7 + number} {'w9 ' * number}"}] for number in range(5)]


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> LocalWriter:
    loaded = tiny_model("llama")
    loaded.tokenizer.chat_template = TEMPLATE
    monkeypatch.setattr(writer_module, "load_model", lambda *_: loaded)
    return LocalWriter(ModelConfig(name="x"), SamplingSettings(max_new_tokens=12, temperature=1.0))


def test_texts_follow_from_their_seeds_whatever_the_batch(local: LocalWriter) -> None:
    whole = local.write(WORDS, SEEDS)
    assert whole == local.write(WORDS, SEEDS)
    assert [local.write([chat], [seed])[0] for chat, seed in zip(WORDS, SEEDS, strict=True)] == whole
    assert local.write(WORDS, [seed + 1 for seed in SEEDS]) != whole


def test_greedy_texts_are_those_of_transformers(local: LocalWriter) -> None:
    local.sampling = SamplingSettings(temperature=0, max_new_tokens=12)
    tokenizer = local._ready().tokenizer
    for chat, text in zip(WORDS, local.write(WORDS, SEEDS), strict=True):
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        model = local._ready().model
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        assert text == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_draws_have_the_softmax_of_the_highest_logits() -> None:
    settings = SamplingSettings(temperature=2.0, top_k=3)
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])) * 2
    draw = SeededDraw(range(20_000), settings)
    rows = list(range(20_000))
    found = torch.bincount(torch.tensor(draw(logits.expand(20_000, -1), rows)), minlength=4) / 20_000
    assert found[3] == 0
    assert torch.allclose(found[:3], torch.tensor([0.5, 0.3, 0.15]) / 0.95, atol=0.015)


@pytest.mark.parametrize("changes", [{"temperature": -1}, {"top_k": 0}, {"max_new_tokens": 0}])
def test_sampling_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"sampling\.{next(iter(changes))} must be at least"):
        SamplingSettings(**changes)


def test_a_model_without_a_chat_template_is_refused(local: LocalWriter) -> None:
    local._ready().tokenizer.chat_template = None
    local._loaded = None
    with pytest.raises(InputError, match=r"writer\.model must have a chat template"):
        local.write(WORDS, SEEDS)
