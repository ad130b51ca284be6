"""Hyperparameter search over training runs. This package does not import torch."""
