# make launch: a first search on this machine. make test: everything that a change must pass.
# Once installed, no target needs the network: pip runs only when pyproject.toml has changed.

PYTHON ?= python3
STUDY ?= beta2_sweep
WORKERS ?= 4
BIN := .venv/bin

.PHONY: launch test lint bench clean

launch: .venv/.installed
	$(BIN)/hpo launch --study $(STUDY) --workers $(WORKERS)

test: lint
	$(BIN)/pytest -n 2

lint: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/.installed-dev
	for script in bench/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e .
	touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch .venv/.installed $@
