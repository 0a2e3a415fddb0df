# Everything a person or a machine does with this project. `make` alone lists the targets.
#
# Needed: Python 3.11 or later (with venv), make, and a package index that pip can reach.
# Everything is installed into .venv, from requirement files that are locked with hashes.

PYTHON ?= python3
ARGS ?=
# Most tests wait for processes that they started, so several at once are done sooner. One after the other: PROCESSES=
PROCESSES ?= --numprocesses=logical --maxprocesses=4 --dist=loadgroup

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
INSTALL := $(PIP) install --require-hashes --no-deps
COMPILE := $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --universal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup dev demo test lint format generate types walls bench lock clean

help: ## List the targets
	@echo "Targets of spotledger:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  ARGS=…        is passed on to demo, test and bench:  make test ARGS='-k nonce -x'"
	@echo "  PROCESSES=    runs the tests one after the other, as a debugger needs it"
	@echo "  PYTHON=…      names the Python that .venv is made with:  make setup PYTHON=python3.12"

setup: $(VENV)/.base-stamp ## Make .venv with what the service needs; leaves .venv/bin/spotledger

dev: $(VENV)/.dev-stamp ## Add what tests and checks need to .venv

demo: setup ## Start the service with demo accounts and show a signed getBalance
	$(BIN)/spotledger demo $(ARGS)

test: dev ## Run all tests
	$(BIN)/pytest $(PROCESSES) $(ARGS)

lint: dev ## Check style and formatting (make format mends what it can)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/generate_blocking_client.py --check

format: dev ## Put the code in the agreed form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: dev ## Generate the blocking client from the async one
	$(BIN)/python tools/generate_blocking_client.py

types: dev ## Check the types (mypy, strict)
	$(BIN)/mypy

walls: dev ## Check who imports whom (import-linter)
	$(BIN)/lint-imports

bench: $(VENV)/.bench-stamp ## Measure, side by side with peers; BENCH_QUICK=1 for a first look
	$(BIN)/python -m bench $(ARGS)

lock: $(VENV)/.base-stamp ## Resolve the requirements anew and lock them (ARGS=--upgrade for newer ones)
	$(INSTALL) -r requirements/lock.txt
	$(COMPILE) $(ARGS) pyproject.toml --extra parquet --group dev -o requirements/dev.txt
	$(COMPILE) $(ARGS) pyproject.toml --extra parquet -c requirements/dev.txt -o requirements/parquet.txt
	$(COMPILE) $(ARGS) pyproject.toml --extra parquet --group dev --group bench -c requirements/dev.txt -o requirements/bench.txt
	$(COMPILE) $(ARGS) pyproject.toml -c requirements/dev.txt -o requirements/base.txt
	$(COMPILE) $(ARGS) --group build -c requirements/dev.txt -o requirements/build.txt
	$(COMPILE) $(ARGS) --group lock -o requirements/lock.txt

clean: ## Remove .venv and all caches; a data folder is left alone
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The virtual environment. Made anew where another Python is asked for; checked before anything is written.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "spotledger needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo missing)." >&2; \
	  echo "Name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' comes without venv and ensurepip. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than the lock it was installed from, so a second run has nothing to do.
$(VENV)/.base-stamp: $(BIN)/python requirements/base.txt requirements/build.txt pyproject.toml
	$(INSTALL) -r requirements/build.txt -r requirements/base.txt
	$(PIP) install --no-index --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.dev-stamp: $(VENV)/.base-stamp requirements/dev.txt
	$(INSTALL) -r requirements/dev.txt
	@touch $@

$(VENV)/.bench-stamp: $(VENV)/.dev-stamp requirements/bench.txt
	$(INSTALL) -r requirements/bench.txt
	@touch $@
