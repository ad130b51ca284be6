"""Private attributes, table columns and key formats of Optuna that hpo relies on.

Written for Optuna 5.0.0 and optuna-dashboard 0.21. Optuna may change any of these names without notice, so no other
package of hpo uses them directly. tests/hpo/test_optuna_internals.py compares every assumption with the installed
version; when the test fails after an upgrade, this package is the place to change.
"""
