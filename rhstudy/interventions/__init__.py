"""Causal tests on heads: knocking them out, patching them across models, and the random heads that are controls."""
