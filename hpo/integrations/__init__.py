"""Callbacks that report to hpo from other training libraries."""
