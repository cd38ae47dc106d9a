# The commands of the README. `make report` and `make test` set everything up by themselves.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

# The first Python that is new enough; `make report PYTHON=/path/to/python` chooses another.
SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do "$$p" -c '$(SUPPORTED)' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# EXPERIMENT=tiny runs params.yaml with experiments/tiny.yaml laid over it. ARGS go to snakemake or pytest.
EXPERIMENT ?= micro
OVERLAY := $(if $(filter micro,$(EXPERIMENT)),,--configfile experiments/$(EXPERIMENT).yaml)
# an experiment's name has underscores where its file has hyphens
REPORT := reports/$(subst -,_,$(EXPERIMENT))/index.html
ARGS ?=
# Test processes, one thread each; "auto" is one for each core.
WORKERS ?= auto

# Nothing is fetched from a model hub behind your back, and nothing is reported to anybody.
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export DVC_NO_ANALYTICS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export MPLBACKEND ?= Agg
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
# Without stored bytecode every start of Python compiles torch, diffusers and transformers anew: 13 s instead of 4.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup report share test test-pipeline test-slow lint format types world lock clean distclean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## .venv with every dependency, pinned and hashed

$(READY): requirements.txt requirements.in requirements-dev.in pyproject.toml
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c '$(SUPPORTED)' 2>/dev/null; then \
	  echo "Palimpsest needs Python 3.11 or newer; found: $$($(or $(PYTHON),python3) --version 2>&1 || true)." >&2; \
	  echo "Install one, or name it: make $(or $(firstword $(MAKECMDGOALS)),setup) PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@[ -x $(BIN)/python ] && $(BIN)/python -c '$(SUPPORTED)' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	@bash tools/install.sh $(BIN)/python
	@touch $@

report: $(READY) ## the whole benchmark on the micro world, then its page (EXPERIMENT=tiny: a reduced one)
	@$(BIN)/snakemake $(ARGS) $(OVERLAY) || { $(BIN)/snakemake partial $(OVERLAY); \
	  echo "Some cells failed; $(REPORT) shows the others and the reasons. Run the same command again to go on." >&2; exit 1; }
	@echo; echo "The report is ready: open $(REPORT) in a browser."

share: $(READY) ## check the results, let DVC track what is new, and say what to commit and push
	@$(BIN)/palimpsest share $(if $(OVERLAY),--config experiments/$(EXPERIMENT).yaml) $(ARGS)

test: $(READY) ## all tests but the slow ones
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-pipeline: $(READY) ## every scenario of the pipeline, the slow ones too
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest tests/pipeline -m "pipeline_slow or not pipeline_slow" -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(READY) ## the slow tests alone
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m "slow and not pipeline_slow" -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(READY) ## style of Python and Snakemake files, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check Snakefile rules
	@$(BIN)/mypy

format: $(READY) ## rewrite Python and Snakemake files in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/snakefmt Snakefile rules

world: $(READY) ## train the micro world's checkpoints again from nothing (long)
	@$(BIN)/snakemake world $(ARGS)

lock: $(READY) ## pin and hash the newest versions that fit requirements*.in
	@$(BIN)/uv pip compile --upgrade --universal --fork-strategy fewest --python-version 3.11 --generate-hashes --quiet \
	  --no-annotate --no-header --no-emit-index-url --no-emit-find-links requirements.in requirements-dev.in -o requirements.txt
	@sed -i '1i # Every package this project installs, with hashes. Made by `make lock` from requirements.in and requirements-dev.in; do not edit.' requirements.txt

clean: ## caches, logs and half-written files; results stay
	@rm -rf logs .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	@find data models reports -name '*.part' -delete

distclean: clean ## clean, and the environment
	@rm -rf $(VENV)
