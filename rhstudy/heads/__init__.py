"""The heart: retrieval scores and sets of retrieval heads."""
