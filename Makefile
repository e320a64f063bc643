# Every target makes its own .venv when it is missing; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# the versions to install: constraints-oldest.txt holds the lowest that pyproject.toml admits
CONSTRAINTS ?= constraints.txt

EXP ?=
SIZE ?=
DATA ?=
WORKERS ?=
STORAGE ?=
ARGS ?=
# test processes side by side; each has one thread, so that they do not crowd each other. Files come in their own order:
# by default those with few tests come last, which are the long ones, and one process would do them alone
JOBS ?= 2

# asked before anything is made, the environment included
about_exp = $(filter sweep plots report store,$(MAKECMDGOALS))
ifneq ($(and $(about_exp),$(if $(EXP),,missing)),)
$(error EXP is missing: name a file of sweeps/, e.g. `make $(firstword $(about_exp)) EXP=rank_ablation` (there are: $(notdir $(basename $(wildcard sweeps/*.yaml)))))
endif
which_study = $(EXP) $(if $(SIZE),--size $(SIZE)) $(if $(DATA),--data $(DATA)) $(ARGS)

.PHONY: help setup sweep plots report test test-slow test-gpu test-oldest lint format bench docs store clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo "  EXP=name of a file in sweeps/, SIZE=60m and DATA=c4 choose the model size and the corpus"
	@echo "  WORKERS=4 runs of a sweep at a time; STORAGE=URL of its study, the same on several machines"

setup: $(READY)  ## Make the virtual environment

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	"error: this is Python %s: give 3.11 or newer, e.g. PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[dev]'
	$(BIN)/python -m elas_lightning.lightning_command
	@touch $@

sweep: $(READY)  ## Run sweeps/$(EXP).yaml to its end (goes on where it stopped), then plots and report
	@$(BIN)/elas sweep $(which_study) $(if $(WORKERS),--workers $(WORKERS)) $(if $(STORAGE),--storage '$(STORAGE)')

plots: $(READY)  ## Redraw the plots of EXP from the stored results
	@$(BIN)/elas plots $(which_study)

report: $(READY)  ## Rewrite plots, tables and report.html of EXP from the stored results
	@$(BIN)/elas report $(which_study)

test: $(READY)  ## Run the tests (9 to 23 minutes on two cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(READY)  ## Run the proofs that take minutes
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-gpu: $(READY)  ## Run the tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu $(ARGS)

# their warnings, of which newer versions have mended many, fail no test
test-oldest:  ## Run the tests with the lowest versions admitted, in .venv-oldest
	@$(MAKE) --no-print-directory test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt ARGS='-o filterwarnings=default $(ARGS)'

lint: $(READY)  ## Check style and types; edits nothing
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(READY)  ## Rewrite the sources in the house's style
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(READY)  ## Measure training steps side by side on this machine
	@$(BIN)/elas bench $(ARGS)

docs: $(READY)  ## Build the documentation into site/; a broken link or a missing page fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "documentation: site/index.html"

store: $(READY)  ## Keep the results of EXP with the code, for the documentation's results page
	@$(BIN)/python docs/store.py $(which_study)

clean:  ## Remove the virtual environment and caches (never runs/)
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache
