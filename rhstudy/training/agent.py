"""Torch's elastic agent (what `torchrun --standalone` runs): starts the training processes of one host and ends them.

Started by `processes` as ``python -m rhstudy.training.agent JOB.json NUM_PROCESSES``, in a process of its own, because
the agent takes over SIGINT and SIGTERM. When one process ends by a failure, it ends the others; which failed, and how,
is left in ``failures.json`` beside the job.
"""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rhstudy.training.worker import FAILURES


def main(job_file: Path, num_processes: int) -> int:
    """Run the training processes; returns 0 when all of them ended well."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(job_file.parent / "elastic")),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "rhstudy.training.worker", str(job_file))
    except ChildFailedError as error:
        failures = [{"rank": rank, "exit_code": failure.exitcode} for rank, failure in error.failures.items()]
        (job_file.parent / FAILURES).write_text(json.dumps(failures), encoding="utf-8")
        return 1
    except SignalException:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
