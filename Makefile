# make launch: a first search on this machine. make test: everything that a change must pass.
# Once installed, no target needs the network: pip runs only when pyproject.toml has changed.

PYTHON ?= python3
STUDY ?= beta2_sweep
WORKERS ?= 4
MINUTES ?= 30
BIN := .venv/bin
# Python compiles the modules that are imported. Compiling all of them takes half of the installation.
PIP_OPTIONS := --quiet --no-compile
# Tests start many interpreters, so compiled modules are written even where the environment forbids it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: launch test suite exhaustive generated evidence integrations lint docs site bench gpu gpu-wheels replay replay-full ladders chaos clean

launch: .venv/.installed
	$(BIN)/hpo launch --study $(STUDY) --workers $(WORKERS)

test: .venv/.installed-dev
	$(MAKE) --jobs=2 --output-sync=line lint suite site

suite: .venv/.installed-dev
	$(BIN)/pytest -n 4 --dist loadgroup --durations=15

# Made-up command lines and study files, far more of them than in `make test`: about twenty minutes.
generated: .venv/.installed-dev
	HPO_EXAMPLES=10000 $(BIN)/pytest -n 2 --dist loadfile tests/generated

# Every case of every test, on both storages: about 40 minutes on two cores.
exhaustive: .venv/.installed-dev
	$(BIN)/pytest -n 4 --dist loadgroup --exhaustive

# Error rates of the verdicts on hundreds of synthetic studies with a known effect; writes docs/evidence.md.
evidence: .venv/.installed-dev
	HPO_EVIDENCE=docs/evidence.md $(BIN)/pytest -q -m evidence tests/evidence

# The programs that hpo works with but does not need: trackers, transformers, Slurm. They have an environment of their own,
# because they may need other versions of what hpo needs, and the search must pass its tests without them.
integrations: .venv-integrations/.installed
	.venv-integrations/bin/pytest -q -m integrations tests/integrations

lint: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The documentation site in site/, in strict mode. The tests check that the generated pages are up to date.
site: .venv/.installed-dev
	$(BIN)/mkdocs build --strict --quiet

# The generated pages and the site.
docs: .venv/.installed-dev
	$(BIN)/python -m docs.generate
	$(MAKE) site

# Without bench/rules.py, whose searches take an hour of CPU time, bench/probe_runs.py, and what has targets of its own:
# bench/replay.py and bench/ladders.py.
bench: .venv/.installed-dev
	for script in $(filter-out bench/rules.py bench/replay% bench/probe% bench/ladder%,$(wildcard bench/*.py)); do $(BIN)/python $$script || exit 1; done

# The tests that need a GPU, and measurements on it, in less than eight minutes. Needs Python 3.12, torch with CUDA and
# .gpu/wheels, but no network. docs/gpu.md says more. Try it without a GPU: make gpu GPU_OPTIONS='--device cpu --tiny'
GPU_OPTIONS ?=
gpu:
	$(PYTHON) bench/gpu/environment.py
	.gpu/venv/bin/python -m bench.gpu $(GPU_OPTIONS)

# Download the wheels that `make gpu` installs, about 30 MB.
gpu-wheels:
	PYTHON=$(PYTHON) bench/gpu/wheels .gpu/wheels

# Simulated searches on the recorded curves in the folder that HPO_CURVES names; writes the tables of docs/search.md.
replay: .venv/.installed-dev
	$(BIN)/python bench/replay.py quick
	$(BIN)/python -m docs.generate

# The same for every sampler and pruner: hours. It continues where it was interrupted.
replay-full: .venv/.installed-dev
	$(BIN)/python bench/replay.py full
	$(BIN)/python -m docs.generate

# Ladders of our own GPT against dense searches at their targets: hours. It continues where it was interrupted.
ladders: .venv/.installed-dev
	$(BIN)/python bench/ladders.py --workers 2
	$(BIN)/python -m docs.generate

# Faults drawn at random against real studies on both storages; docs/reliability.md holds the last run's summary.
chaos: .venv/.installed-dev
	PYTHONPATH=. $(BIN)/python -m tests.faults.chaos --minutes $(MINUTES)

clean:
	rm -rf .venv .venv-integrations site .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The pip of a new environment is that of Python's release; a recent one installs in half the time.
.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_OPTIONS) --upgrade pip

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install $(PIP_OPTIONS) -e .
	touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install $(PIP_OPTIONS) -e '.[dev]'
	touch .venv/.installed $@

.venv-integrations/.installed: pyproject.toml
	test -x .venv-integrations/bin/python || $(PYTHON) -m venv .venv-integrations
	.venv-integrations/bin/python -m pip install $(PIP_OPTIONS) --upgrade pip
	.venv-integrations/bin/python -m pip install $(PIP_OPTIONS) -e '.[integrations]'
	touch $@
