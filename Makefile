# Penstock. `make demo` is the first thing to try; CONTRIBUTING.md says what else there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-long test-nojava check bench clean FORCE

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: .venv/.penstock-locked ## everything the other targets need
.venv/.penstock-locked: requirements/runtime.txt requirements/dev.txt pyproject.toml
	@requirements/install
