"""Hyperparameter search over training runs. Never imports torch."""
