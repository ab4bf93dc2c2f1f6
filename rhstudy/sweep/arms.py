"""Models beside a sweep's trials: the same recipes with further seeds, references from few rows, the untuned model.

Every stage is the one that a trial runs, so what is done already is reused by digest; what was deleted since is redone.
"""

from __future__ import annotations

import dataclasses

from rhstudy.data.config import DataConfig
from rhstudy.data.knobs import Knobs, preset
from rhstudy.plan import arm_training, held_out_data, train_data
from rhstudy.stages import detect, evaluate, finetune, make_data
from rhstudy.stages.evaluate import EvaluateConfig
from rhstudy.sweep.config import SweepConfig
from rhstudy.sweep.measure import detect_config
from rhstudy.tracking.recorder import Recorder
from rhstudy.tracking.stage_run import StageResult

UNTUNED = "untuned"


class Arms:
    """Trains, scores and evaluates for one sweep; runs are nested under `parent`."""

    def __init__(self, config: SweepConfig, recorder: Recorder, parent: str) -> None:
        self._config, self._recorder, self._parent = config, recorder, parent
        self._rows: dict[str, StageResult] = {}

    def rows(self, part: str) -> StageResult:
        """The real rows of ``score`` or ``eval``."""
        if part not in self._rows:
            asked = held_out_data(self._config, "score" if part == "score" else "eval")
            self._rows[part] = make_data.run(
                asked, self._recorder, parent_run_id=self._parent, run_name=f"make-data {part} rows"
            )
        return self._rows[part]

    def trained(self, knobs: Knobs, seed: int, data: DataConfig, name: str) -> StageResult:
        """The checkpoint of a recipe; `data` has its budget."""
        settings = dataclasses.replace(self._config, data=data)
        made = make_data.run(
            train_data(settings, knobs, seed), self._recorder, parent_run_id=self._parent, run_name=f"make-data {name}"
        )
        asked = arm_training(settings, made.run_id, seed)
        return finetune.run(asked, self._recorder, parent_run_id=self._parent, run_name=f"finetune {name}")

    def evaluated(self, checkpoint: str, name: str) -> StageResult:
        """Answers on the eval rows of a checkpoint (empty: of the untuned model)."""
        config = self._config
        asked = EvaluateConfig(
            data=self.rows("eval").run_id, checkpoint=checkpoint, model=config.model, context=config.context,
            answering=config.validation.answering, tracking=config.tracking,
        )  # fmt: skip
        return evaluate.run(asked, self._recorder, parent_run_id=self._parent, run_name=f"evaluate {name}")

    def scored(self, checkpoint: str, name: str) -> StageResult:
        """Head scores on the score rows of a checkpoint (empty: of the untuned model)."""
        asked = detect_config(self._config, self.rows("score").run_id, checkpoint)
        return detect.run(asked, self._recorder, parent_run_id=self._parent, run_name=f"detect {name}")

    def reference(self, num_distinct: int, name: str) -> StageResult:
        """Scores of a model trained like the sweep's own reference, on so many distinct real rows; 0: the untuned one.

        It has as many examples as the whole reference: its rows come again with new padding.
        """
        if not num_distinct:
            return self.scored("", name)
        config = self._config
        knobs = preset(config.reference_recipe, config.data.task)
        data = dataclasses.replace(config.data, num_distinct=num_distinct)
        return self.scored(self.trained(knobs, config.reference_seed, data, name).run_id, name)
