# Penstock. `make demo` is the first thing to try; CONTRIBUTING.md says what else there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-long test-nojava clients lint check bench clean FORCE

PENSTOCK_BUILD_DIR ?= .penstock-build
VENV_READY := .venv/.penstock-locked
BROKER_READY := $(PENSTOCK_BUILD_DIR)/broker-ready
CLIENTS := $(PENSTOCK_BUILD_DIR)/clients
BIN := .venv/bin
# More arguments for penstock (demo, up) or pytest (test, test-long): make test ARGS="-k lanes -x"
ARGS ?=
export PENSTOCK_BUILD_DIR

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(VENV_READY) $(BROKER_READY) ## .venv, Java (if there is none), Kafka and its start-up archive; nothing to do costs nothing
	@:

# These stamps hold the folder they were made in: neither an environment nor a start-up archive survives being moved.
ifneq ($(file <$(VENV_READY)),$(CURDIR))
$(VENV_READY): FORCE
endif
ifneq ($(file <$(BROKER_READY)),$(CURDIR))
$(BROKER_READY): FORCE
endif
ifneq ($(file <$(CLIENTS)/tccli/ready),$(CURDIR))
$(CLIENTS)/tccli/ready: FORCE
endif
FORCE:

# PYTHON=/path/to/python3 chooses the interpreter; else the newest of the usual names.
$(VENV_READY): requirements/runtime.txt requirements/dev.txt pyproject.toml
	@requirements/install

$(BROKER_READY): infra/broker/jars.lock $(VENV_READY)
	@$(BIN)/python -m infra.broker.install

$(CLIENTS)/tccli/ready: requirements/tccli.txt $(VENV_READY)
$(CLIENTS)/node/ready: tests/clients/node/package-lock.json
$(CLIENTS)/go/ready: tests/clients/go/main.go tests/clients/go/go.sum
$(CLIENTS)/%/ready: tests/clients/install
	@tests/clients/install $* $(@D) $(filter-out FORCE,$^)

clients: setup $(CLIENTS)/tccli/ready $(CLIENTS)/node/ready $(CLIENTS)/go/ready ## tccli, and the Node and Go SDKs where npm and go are, for their tests
	@:

demo: setup ## the main job end to end on real Kafka, shown as it happens
	@$(BIN)/penstock demo $(ARGS)

up: setup ## the fabric, in the foreground
	@$(BIN)/penstock up $(ARGS)

test: setup $(CLIENTS)/tccli/ready ## unit, property and integration tests
	@$(BIN)/pytest tests/unit tests/property tests/integration -m "not long and not chaos and not bench" $(ARGS)

test-long: setup ## long tests and kills
	@$(BIN)/pytest tests/unit tests/property tests/integration tests/chaos -m "(long or chaos) and not bench" $(ARGS)

test-nojava: ## a fresh clone of HEAD on a machine without Java and Maven: set-up, demo, tests
	@.ci/nojava

lint: $(VENV_READY) ## style, types, imports
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "run $(BIN)/ruff format" >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@report=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$report"; exit 1; }

check: lint ## lint and the quick tests, in less than two minutes
	@$(BIN)/pytest tests/unit tests/property -m "not long and not chaos and not bench" -n 2 -q $(ARGS)

bench: setup ## every figure, as JSON, one line a script
	@set -e; for script in tests/bench/bench_*.py; do \
		echo "# $$script" >&2; $(BIN)/python -m tests.bench.$$(basename $$script .py); done

clean: ## what set-up and tests made in this folder
	@rm -rf .venv .venv.lock $(PENSTOCK_BUILD_DIR) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache \
		.coverage htmlcov *.egg-info
	@find . -name __pycache__ -prune -exec rm -rf {} +
