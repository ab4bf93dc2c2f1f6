"""Runs, their artifacts and their reuse: MLflow or a plain folder behind one interface."""
