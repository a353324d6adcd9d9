"""Training, evaluation and prediction runs."""
