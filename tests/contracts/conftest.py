from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from recorder_stores import _no_launcher, make_mlflow, make_recorder, recorder, template_store

__all__ = ["_no_launcher", "make_mlflow", "make_recorder", "recorder", "template_store"]
