"""Runs, their artifacts and their reuse: MLflow or a plain folder behind one interface.

Reading order: `recorder.py` (the promise), `stage_run.py` (one stage, one run), `groups.py` (parents), `artifacts.py`
(files with digests), `endings.py` (true statuses); `mlflow_recorder.py` is the one door to MLflow.
"""
