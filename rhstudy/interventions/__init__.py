"""Causal tests on heads: knocking them out, and the random heads that serve as controls."""
