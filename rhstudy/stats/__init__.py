"""From a tidy table to claims with intervals."""
