"""One of several training processes: the model sharded with torch's FSDP2 (`fully_shard`), the loop as it always is.

What is sharded over R processes, unit by unit (each is put together when it is needed and taken apart after):

- the attention module of each layer: float32 masters, their gradients (summed in float32) and AdamW's two moments, 1/R
  of each in every process; put together in the model's number format, in which the passes compute;
- the frozen rest of each decoder layer, in the model's number format;
- adapters are small: whole in every process, their gradients summed (see `ranks`);
- embeddings, final norm and LM head, one unit that stays whole between the forward and the backward pass.

Activations are each process' own. Every process loads the model on the CPU and moves its pieces layer by layer, so no
GPU ever holds all of it. On the CPU, safetensors in the wanted number format are mapped: pages that all processes
share. Weights that are converted while loading, and the attention modules' float32 masters until they are cut, are
there once a process. Quantised weights cannot be cut and are refused (see `config`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from rhstudy.configs import Dtype
from rhstudy.data.examples_file import read_examples
from rhstudy.models.anatomy import attention_modules
from rhstudy.models.load import load_model, resolve_device, resolve_dtype
from rhstudy.training.config import TrainingConfig
from rhstudy.training.context import make_trainable
from rhstudy.training.loop import TrainingResult, finetune
from rhstudy.training.processes import OUTCOME, STEPS, WEIGHTS, Job
from rhstudy.training.ranks import Ranks


def shard(model: PreTrainedModel, config: TrainingConfig, seed: int, mesh: DeviceMesh) -> dict[str, nn.Parameter]:
    """Freeze `model` but for what is trained and shard it over `mesh`, in place.

    Returns:
        Trainable parameters by qualified name, in module order: attention as distributed tensors, adapters whole in
        every process.

    Raises:
        InputError: as `make_trainable`.
    """
    dtype = model.dtype
    chosen = make_trainable(model, config, seed)
    adapters = set(chosen.values()) if config.method == "lora" else set()
    for parameter in adapters:
        parameter.data = parameter.data.to(mesh.device_type)
    # Autocast casts inputs where it must, as it does with one process. A unit's trained parameters must have one type.
    trained = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    frozen = MixedPrecisionPolicy(cast_forward_inputs=False)
    for name, attention in attention_modules(model).values():
        policy = frozen if adapters else trained
        unit = fully_shard(attention, mesh=mesh, mp_policy=policy, ignored_params=adapters)
        # Gradients are added, not averaged: a step's loss is divided by its number of tokens already. (Plain sums also
        # avoid the average of the CPU's gloo, which is wrong in some versions: pytorch issue 162338.)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
        layer = model.get_submodule(name.rpartition(".")[0])
        fully_shard(layer, mesh=mesh, mp_policy=frozen, ignored_params=adapters)
    fully_shard(model, mesh=mesh, mp_policy=frozen, ignored_params=adapters)
    placed = dict(model.named_parameters())
    return {name: placed[name] for name in chosen}


def train(job: Job, folder: Path) -> None:
    """Be the process that the environment says (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``): train `job`.

    Rank 0 appends a JSON line a step to ``steps.jsonl`` in `folder` and leaves ``weights.safetensors`` and
    ``outcome.json`` there.

    Raises:
        InputError, StudyError: as `rhstudy.training.loop.finetune` and `load_model`.
    """
    device = resolve_device(job.model.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dtype = cast(Dtype, str(resolve_dtype(job.model, device)).removeprefix("torch."))
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    ranks = Ranks(rank=dist.get_rank(), size=dist.get_world_size())
    mesh = init_device_mesh(device.type, (ranks.size,))
    loaded = load_model(dataclasses.replace(job.model, device="cpu", dtype=dtype), job.context)
    examples = read_examples(job.examples_file, loaded.tokenizer)

    def on_step(step: int, metrics: Mapping[str, float]) -> None:
        if ranks.rank == 0:
            with (folder / STEPS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "metrics": metrics}) + "\n")

    result = finetune(
        loaded, examples, job.training, seed=job.seed, work_dir=Path(job.work_dir), on_step=on_step,
        ranks=ranks, prepare=lambda model, config, seed: shard(model, config, seed, mesh),
    )  # fmt: skip
    peaks = _peaks(device)
    if ranks.rank == 0:
        _write(result, peaks, folder)
    # Not when it failed: this would wait for processes that may be no more.
    dist.destroy_process_group()


def _peaks(device: torch.device) -> dict[str, float]:
    """Peak memory of the process that needed most."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"peak_rss_bytes_per_process": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    if device.type == "cuda":
        peaks["peak_gpu_bytes_per_process"] = float(torch.cuda.max_memory_allocated(device))
    most = torch.tensor(list(peaks.values()), dtype=torch.float64, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return dict(zip(peaks, most.tolist(), strict=True))


def _write(result: TrainingResult, peaks: Mapping[str, float], folder: Path) -> None:
    save_file(result.weights, folder / WEIGHTS)
    names = [item.name for item in dataclasses.fields(result) if item.name != "weights"]
    outcome = {name: getattr(result, name) for name in names} | {"process_peaks": peaks}
    scratch = (folder / OUTCOME).with_suffix(".part")
    scratch.write_text(json.dumps(outcome), encoding="utf-8")
    os.replace(scratch, folder / OUTCOME)
