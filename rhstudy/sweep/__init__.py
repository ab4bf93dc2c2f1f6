"""Search of the space of training data for head recall, by any number of workers; the one door to Optuna."""
