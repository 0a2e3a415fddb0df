# The commands of this project; `make` alone lists them.
#
# They need Python 3.11 or later with venv, and a package index that pip can reach. Everything is installed into .venv,
# from requirement files that are locked with hashes.

PYTHON ?= python3
ARGS ?=
FLIPS ?= 20000
SEED ?= 1
# Most tests wait for processes that they started, so running several tests at once is faster.
PROCESSES ?= --numprocesses=logical --maxprocesses=4 --dist=loadgroup --max-worker-restart=0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
INSTALL := $(PIP) install --require-hashes --no-deps
COMPILE := $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --universal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup dev demo test quick flips lint format generate types walls bench mutants vulnerabilities lock clean

help: ## List the targets
	@echo "Targets of spotledger:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  ARGS=…        is passed on to demo, test, quick and bench:  make test ARGS='-k nonce -x'"
	@echo "  PROCESSES=    runs the tests one at a time, which a debugger needs:  make test PROCESSES="
	@echo "  PYTHON=…      is the Python to make a new .venv with: make clean setup PYTHON=python3.12"

setup: $(VENV)/.base-stamp ## Install the service into .venv, as .venv/bin/spotledger

dev: $(VENV)/.dev-stamp ## Install what tests and checks need, too

demo: setup ## Start the service with demo accounts and show a signed getBalance
	$(BIN)/spotledger demo $(ARGS)

test: dev ## Run all tests
	$(BIN)/pytest $(PROCESSES) $(ARGS)

# Loading all pytest plugins takes longer than most of these files; pyproject.toml needs pytest-timeout.
quick: dev ## Run one file of unit tests in about a second: FILE=tests/unit/domain/test_rules.py
	@test -n "$(FILE)" || { echo "Name a file: make quick FILE=tests/unit/domain/test_rules.py" >&2; exit 2; }
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/pytest -p pytest_timeout -q $(ARGS) $(FILE)

# Some 20 minutes of two processors. Ctrl-C writes what is done. A trial is seen again with: --first NUMBER --flips 1
flips: dev ## Damage a ledger 20,000 times (FLIPS=N SEED=S), and write the result to docs/reliability-flips.md
	PYTHONPATH=tests $(BIN)/python -m damage --flips $(FLIPS) --seed $(SEED) --write docs/reliability-flips.md $(ARGS)

lint: dev ## Check style and formatting (make format fixes what it can)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/generate_operations.py --check
	$(BIN)/python tools/generate_blocking_client.py --check

format: dev ## Fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: dev ## Generate the client's operations, the blocking client from the async one, and pages of the reference
	$(BIN)/python tools/generate_operations.py
	$(BIN)/python tools/generate_blocking_client.py
	PYTHONPATH=tests $(BIN)/python -m permissions > docs/reference/permissions.md
	$(BIN)/spotledger reference operator-api > docs/reference/operator-api.md
	$(BIN)/spotledger reference errors > docs/reference/errors.md

types: dev ## Check the types (mypy, strict)
	$(BIN)/mypy

walls: dev ## Check which package imports which (import-linter)
	$(BIN)/lint-imports

bench: $(VENV)/.bench-stamp ## Measure, side by side with other software; BENCH_QUICK=1 for a first look
	$(BIN)/python -m bench $(ARGS)

# About an hour of one processor. It goes on where it was interrupted; ARGS=--fresh begins anew, ARGS=GROUP runs one.
mutants: $(VENV)/.mutants-stamp ## Change the code of security and of the HTTP server in every small way; docs/mutation-testing.md says what no test noticed
	$(BIN)/python tools/run_mutants.py $(ARGS)

vulnerabilities: $(VENV)/.vulnerabilities-stamp ## Look for known vulnerabilities in the locked requirements, or say that it cannot be done here
	$(BIN)/python tools/check_vulnerabilities.py $(VENV)/vulnerabilities/bin/pip-audit

lock: $(VENV)/.base-stamp ## Resolve and lock the requirements again (ARGS=--upgrade takes newer versions)
	$(INSTALL) -r requirements/lock.txt
	$(COMPILE) $(ARGS) pyproject.toml --extra parquet --group dev -o requirements/dev.txt
	$(COMPILE) $(ARGS) pyproject.toml --extra parquet -c requirements/dev.txt -o requirements/parquet.txt
	$(COMPILE) $(ARGS) pyproject.toml --extra parquet --group dev --group bench -c requirements/dev.txt -o requirements/bench.txt
	$(COMPILE) $(ARGS) pyproject.toml --extra parquet --group dev --group mutants -c requirements/dev.txt -o requirements/mutants.txt
	$(COMPILE) $(ARGS) --group vulnerabilities -c requirements/dev.txt -o requirements/vulnerabilities.txt
	$(COMPILE) $(ARGS) pyproject.toml -c requirements/dev.txt -o requirements/base.txt
	$(COMPILE) $(ARGS) --group build -c requirements/dev.txt -o requirements/build.txt
	$(COMPILE) $(ARGS) --group lock -o requirements/lock.txt

clean: ## Remove .venv and all caches, but no data folder
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Make the virtual environment, after checking that this Python can.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "spotledger needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo missing)." >&2; \
	  echo "Name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' lacks venv or ensurepip. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than the lock that was installed, so a second run does nothing.
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

$(VENV)/.mutants-stamp: $(VENV)/.dev-stamp requirements/mutants.txt
	$(INSTALL) -r requirements/mutants.txt
	@touch $@

# pip-audit brings its own pip, so it has an environment of its own.
$(VENV)/.vulnerabilities-stamp: $(BIN)/python requirements/vulnerabilities.txt
	$(BIN)/python -m venv $(VENV)/vulnerabilities
	$(VENV)/vulnerabilities/bin/python -m pip --disable-pip-version-check --no-input --quiet install --require-hashes --no-deps -r requirements/vulnerabilities.txt
	@touch $@
