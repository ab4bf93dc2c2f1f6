"""What only a GPU shows of fine-tuning: 4-bit bases and paged moments, packed kernels, memory that runs out, the clock.

python -m pytest tests/gpu/test_finetuning.py -m gpu
"""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hub import write_checkpoint
from tiny_models import random_example, tiny_model, word_tokenizer
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, LlamaConfig

from rhstudy.configs import ContextConfig, ModelConfig
from rhstudy.errors import StudyError
from rhstudy.heads.detect import detect
from rhstudy.models.load import LoadedModel, load_model
from rhstudy.seeding import generator
from rhstudy.training.causal import causal_attention
from rhstudy.training.config import TrainingConfig
from rhstudy.training.context import autocast
from rhstudy.training.flops import peak_flops
from rhstudy.training.loop import finetune
from rhstudy.training.loss import answer_batch, answer_loss
from rhstudy.training.pauses import Pauses
from rhstudy.training.state import STATE_FILE
from rhstudy.types import Example

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
END = 2
RANK, ALPHA = 8, 16
LORA = {"method": "lora", "lora_rank": RANK, "lora_alpha": ALPHA}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("none", {}),
    "attention, rest in 4 bits": ("4bit", {"optimizer": "adamw_8bit"}),
    "attention, paged": ("none", {"optimizer": "paged_adamw_8bit"}),
    "lora": ("none", LORA),
    "qlora": ("nf4", {**LORA, "optimizer": "adamw_8bit"}),
    "qlora, paged": ("nf4", {**LORA, "optimizer": "paged_adamw_8bit"}),
}


class StopError(Exception):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 4 layers, 384 wide, heads of 64: enough for flash attention, 8-bit moments and paging."""
    target = tmp_path_factory.mktemp("gpu") / "llama"
    config = LlamaConfig(
        vocab_size=512, hidden_size=384, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=16384, bos_token_id=None, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(target)
    word_tokenizer().save_pretrained(target)
    return target


@pytest.fixture(autouse=True)
def _all_memory() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()
    torch.cuda.empty_cache()


def examples(number: int = 12, length: int = 300, spread: int = 40) -> list[Example]:
    return [
        random_example(generator(3, "gpu", i), i, length=length + i * spread, answer=1 + i % 4) for i in range(number)
    ]


def held(folder: Path, quantization: str = "none", dtype: str = "bfloat16") -> ModelConfig:
    cache = str(folder.parent / "cache")
    return ModelConfig(name=str(folder), device="cuda", dtype=dtype, quantization=quantization, cache_dir=cache)


def train(model: ModelConfig, work: Path, rows: list[Example], stop_at: int = -1, **settings: Any) -> Any:
    loaded = load_model(model, ContextConfig())
    values = {"batch_size": 4, "num_epochs": 2, "learning_rate": 3e-3, "save_every_steps": 2, **settings}

    def on_step(step: int, _metrics: object) -> None:
        if step == stop_at:
            raise StopError

    return loaded, finetune(loaded, rows, TrainingConfig(**values), seed=1, work_dir=work, on_step=on_step)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_learns_and_its_checkpoint_gives_back_the_very_logits(
    folder: Path, tmp_path: Path, form: str
) -> None:
    quantization, settings = FORMS[form]
    model = held(folder, quantization)
    loaded, result = train(model, tmp_path / "work", examples(), **{**settings, "num_epochs": 8})
    assert result.losses[-1] < result.losses[0]
    adapter = {"rank": RANK, "alpha": ALPHA} if settings.get("method") == "lora" else None
    saved = write_checkpoint(tmp_path / "checkpoint", result.weights, model, adapter)
    ids = torch.arange(3, 203, device="cuda")[None]
    with torch.no_grad():
        expected = loaded.model(ids).logits
        assert torch.equal(load_model(model, ContextConfig(), saved).model(ids).logits, expected)
        assert not torch.equal(load_model(model, ContextConfig()).model(ids).logits, expected)


@pytest.mark.parametrize("form", FORMS)
def test_killed_and_resumed_it_ends_where_an_unbroken_run_ends(folder: Path, tmp_path: Path, form: str) -> None:
    quantization, settings = FORMS[form]
    model, rows = held(folder, quantization), examples()
    _, whole = train(model, tmp_path / "whole", rows, deterministic=True, **settings)
    with pytest.raises(StopError):
        train(model, tmp_path / "broken", rows, stop_at=3, deterministic=True, **settings)
    assert (tmp_path / "broken" / STATE_FILE).is_file()
    _, resumed = train(model, tmp_path / "broken", rows, deterministic=True, **settings)
    assert resumed.losses == whole.losses
    assert all(torch.equal(value, whole.weights[name]) for name, value in resumed.weights.items())


def test_deterministic_runs_are_equal_to_the_bit(folder: Path, tmp_path: Path) -> None:
    rows = examples(8, length=2000)
    results = [train(held(folder), tmp_path / str(n), rows, deterministic=True)[1] for n in range(2)]
    assert results[0].losses == results[1].losses
    for name, value in results[0].weights.items():
        assert torch.equal(value, results[1].weights[name])
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_packed_and_padded_passes_have_the_loss_and_gradients_of_single_sequences(
    folder: Path, dtype: str, tolerance: float
) -> None:
    rows = examples(5, length=500, spread=333)
    gradients, losses = [], []
    for groups, packing in (([[row] for row in rows], False), ([rows], False), ([rows], True)):
        model = load_model(held(folder, dtype=dtype), ContextConfig()).model
        for layer in model.model.layers:
            layer.self_attn.requires_grad_(True)
        total = 0.0
        with causal_attention(model, packing=packing):
            for group in groups:
                with autocast(model.device, model.dtype):
                    loss = answer_loss(model, answer_batch(group, END, model.device, packing=packing))
                loss.backward()
                total += float(loss)
        found = [value.grad.float().flatten() for value in model.parameters() if value.grad is not None]
        gradients.append(torch.cat(found))
        losses.append(total)
    for own, loss in zip(gradients[1:], losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=tolerance)
        assert float((own - gradients[0]).norm() / gradients[0].norm()) < 5 * tolerance


@pytest.mark.parametrize("packing", [False, True])
def test_padded_and_packed_passes_keep_to_the_flash_kernel(folder: Path, packing: bool) -> None:
    model = load_model(held(folder), ContextConfig()).model
    for layer in model.model.layers:
        layer.self_attn.requires_grad_(True)
    batch = answer_batch(examples(3, length=700, spread=300), END, model.device, packing=packing)
    # Flash attention takes no mask: had one been made, there would be no kernel left to choose.
    with causal_attention(model, packing=packing), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with autocast(model.device, model.dtype):
            loss = answer_loss(model, batch)
        loss.backward()
    assert math.isfinite(float(loss))


def test_memory_that_runs_out_is_made_do_with(folder: Path, tmp_path: Path) -> None:
    rows = examples(8, length=4000, spread=10)
    _, plenty = train(held(folder), tmp_path / "plenty", rows, batch_size=8, num_epochs=2)
    assert plenty.peak_gpu_bytes is not None
    assert not plenty.gradient_checkpointing
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.6 * plenty.peak_gpu_bytes / total)
    _, scarce = train(held(folder), tmp_path / "scarce", rows, batch_size=8, num_epochs=2)
    assert scarce.peak_gpu_bytes is not None
    assert scarce.peak_gpu_bytes <= 0.6 * plenty.peak_gpu_bytes
    assert scarce.losses == pytest.approx(plenty.losses, abs=2e-2)


def test_memory_that_cannot_do_is_an_error_with_its_remedy(folder: Path, tmp_path: Path) -> None:
    rows = examples(2, length=12000)
    loaded = load_model(held(folder), ContextConfig())
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    with pytest.raises(StudyError, match=r"memory must hold a micro-batch, got .*out of memory"):
        finetune(loaded, rows, TrainingConfig(batch_size=2), seed=0, work_dir=tmp_path)
    assert not loaded.model.is_gradient_checkpointing


def test_a_loss_that_is_not_finite_stops_before_its_state_is_saved(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(held(folder), ContextConfig())
    with torch.no_grad():
        loaded.model.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(StudyError, match="training loss must be finite, got nan"):
        finetune(loaded, examples(), TrainingConfig(save_every_steps=1), seed=0, work_dir=tmp_path)
    assert not (tmp_path / STATE_FILE).exists()


def test_throughput_and_use_of_the_gpu_are_plausible(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(held(folder), ContextConfig())
    points: list[dict[str, float]] = []
    result = finetune(
        loaded, examples(16, length=4000), TrainingConfig(batch_size=8, num_epochs=4), seed=0, work_dir=tmp_path,
        on_step=lambda _step, metrics: points.append(dict(metrics)),
    )  # fmt: skip
    assert [set(point) >= {"loss", "tokens_per_s", "peak_gpu_bytes"} for point in points] == [True] * 8
    assert result.tokens_per_s > 1e4
    assert result.peak_gpu_bytes is not None
    assert 1e7 < result.peak_gpu_bytes < torch.cuda.get_device_properties(0).total_memory
    peak, reason = peak_flops(torch.device("cuda"), torch.bfloat16)
    assert result.mfu_reason == reason
    assert math.isnan(result.mfu) if reason else 0 < result.mfu < 1
    assert math.isnan(peak) == bool(reason)


@pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="triton needs a C compiler")
def test_compiled_layers_learn_the_same(tmp_path: Path) -> None:
    rows = [random_example(generator(3, "gpu", i), i, length=300) for i in range(8)]
    losses = []
    for compiled in ("off", "on"):
        loaded = tiny_model("llama")
        loaded.model.to("cuda")
        settings = TrainingConfig(batch_size=4, num_epochs=2, compile=compiled)
        losses.append(finetune(loaded, rows, settings, seed=0, work_dir=tmp_path / compiled).losses)
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [{"deterministic": True}, {**LORA, "deterministic": True}, {"gradient_checkpointing": "on"}, {"compile": "on"}],
)
def test_looks_in_mid_training_change_nothing(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    if settings.get("compile") and not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("triton needs a C compiler")
    rows, found, seen = examples(12, length=900), [], []
    for steps in ((), (1, 2)):
        loaded = load_model(held(folder), ContextConfig())

        def look(step: int, loaded: LoadedModel = loaded) -> None:
            scores = detect(loaded.model, loaded.tokenizer, rows[:4], batch_size=2, cuda_graphs=False)
            seen.append(float(scores.real_nll.mean()))

        config = TrainingConfig(batch_size=4, num_epochs=1, learning_rate=1e-3, **settings)
        result = finetune(
            loaded, rows, config, seed=0, work_dir=tmp_path / str(len(steps)), pauses=Pauses(steps=steps, look=look)
        )
        found.append(result)
    assert len(set(seen)) == 2
    if settings.get("deterministic"):
        assert found[0].losses == found[1].losses
        assert all(torch.equal(value, found[1].weights[name]) for name, value in found[0].weights.items())
    else:
        assert found[1].losses == pytest.approx(found[0].losses, rel=1e-3)
