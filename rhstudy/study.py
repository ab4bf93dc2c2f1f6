"""Placeholder module docstring: filled by the next commits."""
