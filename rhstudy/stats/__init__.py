"""Statistics of a study's arms: one tidy table in, estimates with intervals, p, n and reasons out. No torch here."""
