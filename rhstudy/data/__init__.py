"""Recipes to examples with exact needle spans. No torch here."""
