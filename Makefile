# The one door. `make serve` and `make test` set up all they need; CI calls the same targets.

PYTHON ?= python3
PORT ?= 8000
GPU ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# once chosen, the GPU build stays: the CPU build that other targets install would take its place
GPU_BUILD := $(if $(GPU)$(wildcard $(VENV)/.gpu),$(VENV)/.gpu)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install serve test torture programs lint format train bench lock clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.serve $(GPU_BUILD) ## Make the environment for serving; GPU=1 takes onnxruntime's CUDA build

serve: $(VENV)/.serve $(GPU_BUILD) ## Serve model_repository/ on 127.0.0.1:8000 (PORT=... for another port)
	@CAROUSEL_PORT=$(PORT) exec $(BIN)/python -m service

test: $(VENV)/.dev $(GPU_BUILD) programs ## Run every test
	$(BIN)/python -m pytest

torture: $(VENV)/.dev $(GPU_BUILD) programs ## Run in full what `make test` runs a little of: kills, cuts, flips, restarts
	$(BIN)/python -m pytest tests/torture --torture

programs: # what some tests start: Redis, nginx, a browser
	@tests/programs.sh

lint: $(VENV)/.dev ## Ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd client && ../$(BIN)/lint-imports

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: $(VENV)/.dev ## Train the four tasks and publish them (hours on two cores)
	for task in vowels weather kjv adding; do $(BIN)/python -m models train $$task || exit 1; done
	for run in runs/*/; do $(BIN)/python -m export $$run model_repository || exit 1; done

bench: $(VENV)/.dev ## Measure a step through HTTP against the naive server
	$(BIN)/python -m benchmarks

COMPILE := $(BIN)/pip-compile --quiet --no-header --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

lock: $(VENV)/.dev ## Pin the dependencies of pyproject.toml anew
	$(COMPILE) --output-file requirements/serve.txt pyproject.toml
	$(COMPILE) --extra train --extra dev --constraint requirements/serve.txt --upgrade-package torch==2.13.0 \
		--output-file requirements/dev.txt pyproject.toml
	sed -i -E 's/^(torch==[0-9.]+)\+cpu/\1/' requirements/dev.txt

clean: ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Carousel needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Say which: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: requirements/serve.txt | $(BIN)/python
	$(PIP) install -r requirements/serve.txt
	@touch $@

# both builds bring the module of the same name, and uninstalling one takes the other's files too
$(VENV)/.gpu: requirements/gpu.txt $(VENV)/.serve
	$(PIP) uninstall --yes onnxruntime onnxruntime-gpu
	$(PIP) install -r requirements/gpu.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt | $(BIN)/python
	$(PIP) install -r requirements/dev.txt
	@touch $@ $(VENV)/.serve
