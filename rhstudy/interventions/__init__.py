"""Causal tests on heads: knockout and patching."""
