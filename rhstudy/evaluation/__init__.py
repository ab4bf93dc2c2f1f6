"""Marking answers: SQuAD F1 and exact match, and what counts as unscored."""
