"""Join two runs of the published program, float32 and bfloat16, into one golden file.

    python tests/golden/published_code_golden.py float32.json bfloat16.json > tests/golden/published_code_parity.json

The inputs come from tests/bench/published_program.py. For `published_code_parity.json` (a CPU, about 2 and 6 minutes):

    python tests/golden/published_haystack.py HAYSTACK
    published_program.py records --checkout CHECKOUT --model SMOLLM2 --haystack-dir HAYSTACK --context-lengths 600 850 \
        --depths 50 85 --dtype float32 --out float32.json                             and again with bfloat16

where SMOLLM2 is the folder `rhstudy` keeps smollm2-135m in; for `published_code_parity_tiny.json` (seconds):

    python tests/golden/published_tiny_prompts.py > prompts.json
    published_program.py timed --checkout CHECKOUT --model rhstudy/models/tiny --prompts prompts.json --num-steps 50 \
        --dtype float32 --out float32.json                                            and again with bfloat16

Scores are those of the heads above 0, before the ROUGE gate; times and memory are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

GIVEN = (
    "context_length", "depth_percent", "needle", "question", "real_needle", "prompt_ids", "needle_start", "needle_end"
)  # fmt: skip
FOUND = ("output_ids", "response", "rouge1_recall", "kept", "scores")


def join(runs: dict[str, Any]) -> dict[str, Any]:
    """What was given once, what was found by number format.

    Raises:
        ValueError: the runs are not over the same prompts.
    """
    instances = []
    for group in zip(*(run["instances"] for run in runs.values()), strict=True):
        given = [{name: instance[name] for name in GIVEN} for instance in group]
        if given[0] != given[-1]:
            raise ValueError(f"the runs differ in instance {len(instances)}")
        found = [{name: instance[name] for name in FOUND} for instance in group]
        instances.append(given[0] | dict(zip(runs, found, strict=True)))
    return {"provenance": {name: run["provenance"] for name, run in runs.items()}, "instances": instances}


def dump(golden: dict[str, Any]) -> str:
    """JSON with a line per instance."""
    lines = ",\n".join(json.dumps(instance, ensure_ascii=False) for instance in golden["instances"])
    return f'{{"provenance": {json.dumps(golden["provenance"], indent=1)},\n"instances": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    read = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    sys.stdout.write(dump(join({run["provenance"]["arguments"]["dtype"]: run for run in read})))
