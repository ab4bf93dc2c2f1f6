"""Run the published program of Wu et al. 2024, unmodified, and write down what it did: one JSON object.

    git clone https://github.com/nightdessert/Retrieval_Head CHECKOUT && git -C CHECKOUT checkout 3ac171a
    python3.11 -m venv V && V/bin/pip install torch 'numpy<2' transformers==4.37.2 accelerate==0.27.2 rouge_score
    V/bin/python tests/bench/published_program.py records --checkout CHECKOUT --model MODEL_FOLDER \
        --haystack-dir HAYSTACK --context-lengths 600 850 --depths 50 85 --dtype float32 --out records.json
    V/bin/python tests/bench/published_program.py timed --checkout CHECKOUT --model MODEL_FOLDER \
        --prompts prompts.json --num-steps 50 --repeats 3 --dtype bfloat16 --device cuda --out timed.json

It runs in an environment of its own (transformers 4.37.2; where JAX or TensorFlow are installed too, with USE_FLAX=0
USE_TF=0 set) and imports nothing of this package. Their
`evaluate_and_log`, `decode`, `retrieval_calculate`, `find_needle_idx` and ROUGE gate run as published, the stop at
token ``<0x0A>`` or id 144 included: methods are wrapped to read and time them, never replaced. What is put around them:

- `flash_attn` is a stand-in on torch's scaled_dot_product_attention, used in the prefill (their decode steps compute
  attention themselves); so it also runs without that package and on a CPU.
- `source.modeling_phi3` is an empty stand-in: 4.37.2 has no Phi-3.
- The model folder (saved by transformers 5, a Llama; its name must not hold Qwen, Mistral, Mixtral or Phi3) is copied
  in the format 4.37.2 reads, and loads with a fast tokenizer, in the given dtype, on one device.
- `model_provider` is OpenAI, for which the program inserts needles behind the tokenizer's own ``.``; its other ids are
  of one tokenizer each. (With ids that never occur its search ends at the start of the text.)
- In `timed`, prompts come as ids from a JSON list of ``{"prompt_ids": [...], "real_needle": "text"}``, and the 50 steps
  of the program become --num-steps.

Times: `prefill_s` all prompt tokens but the last; `decode_s` the decode steps, scoring included; `scoring_s` the part
of it spent in `retrieval_calculate`. The device is synchronised at each boundary. `peak_bytes` is the peak of CUDA
memory allocated during the instance, on a CPU the peak of the process so far.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

PROVIDER = "OpenAI"


def options() -> argparse.Namespace:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--checkout", type=Path, required=True, help="a checkout of the published program")
    shared.add_argument("--model", type=Path, required=True, help="model folder: safetensors and tokenizer.json")
    shared.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    shared.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    shared.add_argument("--num-threads", type=int, default=1)
    shared.add_argument("--out", type=Path, help="JSON file to write; stdout otherwise")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    records = modes.add_parser("records", parents=[shared], help="needles in a haystack folder of the program's layout")
    records.add_argument("--haystack-dir", type=Path, required=True)
    records.add_argument("--context-lengths", type=int, nargs="+", default=[600, 850])
    records.add_argument("--depths", type=int, nargs="+", default=[50, 85])
    timed = modes.add_parser("timed", parents=[shared], help="prompts given as token ids")
    timed.add_argument("--prompts", type=Path, required=True)
    timed.add_argument("--num-steps", type=int, default=50)
    timed.add_argument("--repeats", type=int, default=1)
    timed.add_argument("--warmups", type=int, default=0)
    timed.add_argument("--times-only", action="store_true", help="leave prompts, outputs and scores out")
    return parser.parse_args()


# ---------------------------------------------------------------- what the program finds around it


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    **_: Any,
) -> torch.Tensor:
    """The stand-in: layouts (batch, rows, heads, dim); the causal mask is aligned bottom-right."""
    groups, num_rows, num_keys = q.shape[2] // k.shape[2], q.shape[1], k.shape[1]
    query = q.transpose(1, 2)
    key, value = (x.transpose(1, 2).repeat_interleave(groups, dim=1) for x in (k, v))
    mask = None
    if causal and 1 < num_rows != num_keys:
        mask = torch.ones(num_rows, num_keys, dtype=torch.bool, device=q.device).tril(num_keys - num_rows)
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout_p,
        is_causal=causal and 1 < num_rows == num_keys,
        scale=softmax_scale,
    )
    return out.transpose(1, 2)


def _never_called(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("the published program pads nothing here, so the variable-length path is never taken")


def install_stand_ins() -> None:
    """Give the program a `flash_attn` and a `source.modeling_phi3` to import, and say flash attention is there."""
    flash, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    flash.flash_attn_func, flash.flash_attn_varlen_func = flash_attn_func, _never_called
    padding.index_first_axis = padding.pad_input = padding.unpad_input = _never_called
    phi3 = ModuleType("source.modeling_phi3")
    phi3.Phi3ForCausalLM = type("Phi3ForCausalLM", (), {})
    sys.modules |= {"flash_attn": flash, "flash_attn.bert_padding": padding, "source.modeling_phi3": phi3}
    for name in ("transformers.utils", "transformers.utils.import_utils", "transformers.modeling_utils"):
        module = importlib.import_module(name)
        for check in ("is_flash_attn_2_available", "is_flash_attn_greater_or_equal_2_10"):
            if hasattr(module, check):
                setattr(module, check, lambda: True)


def load_program(checkout: Path) -> ModuleType:
    """Import `retrieval_head_detection` of `checkout`."""
    install_stand_ins()
    sys.path[:0] = [str(checkout.resolve()), str(checkout.resolve() / "faiss_attn")]
    return importlib.import_module("retrieval_head_detection")


def convert_model(source: Path, place: Path) -> Path:
    """A copy of a folder saved by transformers 5, as 4.37.2 reads it: config, tokenizer and the same weights."""
    target = place / source.name
    target.mkdir()
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters", None) or {"rope_theta": config.get("rope_theta", 10000.0)}
    if config["model_type"] != "llama" or rope.get("rope_type", "default") != "default":
        raise SystemExit(f"--model must be a Llama without RoPE scaling, got {config['model_type']} with {rope}")
    config |= {"rope_theta": rope["rope_theta"], "torch_dtype": config.pop("dtype", "float32")}
    write_json(target / "config.json", config)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    write_json(target / "tokenizer.json", tokenizer)
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in settings.items() if name.endswith("_token") or name == "model_max_length"}
    settings = {**kept, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(target / "tokenizer_config.json", settings)
    for weights in source.glob("*.safetensors*"):
        os.symlink(weights.resolve(), target / weights.name)
    return target


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


class FastTokenizer:
    """Stands for `AutoTokenizer` in the program, which asks for the slow one."""

    @staticmethod
    def from_pretrained(name: str, **_: Any) -> Any:
        return transformers.PreTrainedTokenizerFast.from_pretrained(name)


def in_dtype(program: ModuleType, dtype: str, device: str) -> type:
    """Their Llama; its `from_pretrained` takes our dtype and device instead of bfloat16 and a device map."""
    theirs = program.LlamaForCausalLM

    class Llama(theirs):  # type: ignore[misc, valid-type]
        @classmethod
        def from_pretrained(cls, name: str, **given: Any) -> Any:
            return theirs.from_pretrained(name, **{**given, "torch_dtype": getattr(torch, dtype), "device_map": device})

    return Llama


def build_tester(program: ModuleType, given: argparse.Namespace, model: Path, haystack: Path) -> Any:
    """Their tester, by their `__init__`."""
    program.AutoTokenizer = FastTokenizer
    program.LlamaForCausalLM = in_dtype(program, given.dtype, given.device)
    tester = program.LLMNeedleHaystackTester(
        haystack_dir=str(haystack),
        context_lengths=getattr(given, "context_lengths", [0]),
        document_depth_percents=getattr(given, "depths", [0]),
        model_provider=PROVIDER,
        model_name=str(model),
        save_results=False,
        save_contexts=False,
    )
    tester.multi_gpus = False  # one device: their own switch, by which inputs are moved to it
    return tester


# ---------------------------------------------------------------- reading and timing it


class Recorder:
    """Wraps methods of one tester and keeps a record per instance."""

    def __init__(self, tester: Any, num_steps: int | None = None) -> None:
        self.tester, self.num_steps = tester, num_steps
        self.instances: list[dict[str, Any]] = []
        self._now: dict[str, Any] = {}
        self._mark = 0.0
        for name in ("evaluate_and_log", "find_needle_idx", "decode", "retrieval_calculate"):
            setattr(tester, name, self._around(name, getattr(tester, name)))
        accumulate = tester.retrieval_head_accumulate
        tester.retrieval_head_accumulate = lambda scores: (self._now.update(kept=True), accumulate(scores))[1]

    def _around(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        wrapper = getattr(self, f"_{name}")
        return lambda *args, **kwargs: wrapper(method, *args, **kwargs)

    @staticmethod
    def clock() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _evaluate_and_log(self, method: Callable[..., Any], *args: Any) -> None:
        tester = self.tester
        self._now = {"kept": False, "scoring_s": 0.0}
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        method(*args)
        result = tester.testing_results[-1]
        self._now |= {
            "context_length": result["context_length"],
            "depth_percent": result["depth_percent"],
            "needle": tester.needle,
            "question": tester.retrieval_question,
            "real_needle": tester.real_needle,
            "prompt_ids": tester.prompt_ids.tolist(),
            "needle_start": tester.needle_start,
            "needle_end": tester.needle_end,
            "response": result["model_response"],
            "rouge1_recall": result["score"],
            "peak_bytes": peak_bytes(),
        }
        self.instances.append(self._now)

    def _find_needle_idx(self, method: Callable[..., Any], needle: str) -> Any:
        found = method(needle)
        self._mark = self.clock()
        return found

    def _decode(self, method: Callable[..., Any], outputs: Any, inp: Any, decode_len: int) -> Any:
        start = self.clock()
        output, scores = method(outputs, inp, self.num_steps or decode_len)
        end = self.clock()
        self._now |= {"prefill_s": start - self._mark, "decode_s": end - start, "output_ids": output}
        self._now["num_steps"] = self.num_steps or decode_len
        counts = {f"{layer}-{head}": pair[0] for layer, row in enumerate(scores) for head, pair in enumerate(row)}
        self._now["scores"] = {head: count for head, count in counts.items() if count}
        return output, scores

    def _retrieval_calculate(self, method: Callable[..., Any], *args: Any) -> None:
        start = self.clock()
        method(*args)
        self._now["scoring_s"] += self.clock() - start


def peak_bytes() -> int:
    """Peak CUDA memory allocated since the instance began, or the process's peak resident memory without CUDA."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class GivenIds:
    """The tester's tokenizer, but the prompt (the one text it wants as tensors) becomes the ids we were given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.prompt_ids: list[int] = []

    def __call__(self, text: str, return_tensors: str | None = None, **kwargs: Any) -> Any:
        if return_tensors == "pt":
            return {"input_ids": torch.tensor([self.prompt_ids])}
        return self._tokenizer(text, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


# ---------------------------------------------------------------- the two modes


def records(program: ModuleType, given: argparse.Namespace, model: Path, place: Path) -> list[dict[str, Any]]:
    """Their `start_test`, over every needle, length and depth; it writes its head counts into `place`."""
    tester = build_tester(program, given, model, given.haystack_dir.resolve())
    recorder = Recorder(tester)
    (place / "head_score").mkdir()
    with contextlib.chdir(place):
        tester.start_test(argparse.Namespace(s_len=min(given.context_lengths), e_len=max(given.context_lengths)))
    return recorder.instances


def timed(program: ModuleType, given: argparse.Namespace, model: Path, place: Path) -> list[dict[str, Any]]:
    """Their `evaluate_and_log` on each given prompt, `repeats` times after `warmups` that are left out."""
    prompts = json.loads(given.prompts.read_text(encoding="utf-8"))
    (place / "needles.jsonl").write_text("", encoding="utf-8")
    tester = build_tester(program, given, model, place)
    recorder = Recorder(tester, given.num_steps)
    tester.enc = GivenIds(tester.enc)
    tester.generate_context = lambda *_: ""
    instances = []
    for index, prompt in enumerate(prompts):
        tester.needle, tester.retrieval_question = prompt.get("needle", ""), prompt.get("question", "")
        tester.real_needle, tester.enc.prompt_ids = prompt["real_needle"], prompt["prompt_ids"]
        for repeat in range(-given.warmups, given.repeats):
            tester.evaluate_and_log(len(prompt["prompt_ids"]), 0)
            instances.append({"prompt": index, "repeat": repeat, **recorder.instances[-1]})
    return [instance for instance in instances if instance["repeat"] >= 0]


def times(instance: dict[str, Any]) -> dict[str, Any]:
    """What the benchmark reads of an instance."""
    names = ("prompt", "repeat", "prefill_s", "decode_s", "scoring_s", "peak_bytes")
    counts = {"num_prompt_tokens": len(instance["prompt_ids"]), "num_new_tokens": len(instance["output_ids"])}
    return {name: instance[name] for name in names} | counts


def git(checkout: Path, *command: str) -> str | None:
    """What git says of `checkout`; None where it is a plain folder."""
    if not (checkout / ".git").exists():
        return None
    found = subprocess.run(["git", "-C", str(checkout), *command], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def provenance(given: argparse.Namespace) -> dict[str, Any]:
    """Which program, which weights, which versions, and how it was called."""
    program = given.checkout / "retrieval_head_detection.py"
    weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in given.model.glob("*.safetensors")}
    packages = ("torch", "transformers", "tokenizers", "numpy", "accelerate", "rouge_score", "nltk")
    named = {"checkout": "CHECKOUT", "model": given.model.name, "haystack_dir": "HAYSTACK", "prompts": "PROMPTS"}
    arguments = {name: named.get(name, value) for name, value in vars(given).items() if name != "out"}
    return {
        "program": "github.com/nightdessert/Retrieval_Head",
        "commit": git(given.checkout, "rev-parse", "HEAD"),
        "changed_files": git(given.checkout, "status", "--porcelain", "--untracked-files=no"),
        "program_sha256": hashlib.sha256(program.read_bytes()).hexdigest(),
        "arguments": arguments,
        "model_sha256": weights,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "device": torch.cuda.get_device_name() if given.device == "cuda" else platform.machine(),
    }


def main() -> None:
    given = options()
    torch.set_num_threads(given.num_threads)
    place = Path(tempfile.mkdtemp())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            model = convert_model(given.model, place)
            program = load_program(given.checkout)
            instances = {"records": records, "timed": timed}[given.mode](program, given, model, place)
            if getattr(given, "times_only", False):
                instances = [times(instance) for instance in instances]
    finally:
        shutil.rmtree(place)
    text = json.dumps({"provenance": provenance(given), "instances": instances}) + "\n"
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
