# Two commands do everything: `make demo` shows it, `make test` checks it. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# torch first and pinned: an open range can pull another build's packages by the gigabyte.
TORCH ?= torch==2.13.0
# Tests in parallel; each torch test keeps to one thread.
JOBS ?= 2
RECIPE ?= alfworld-tiny

.PHONY: help demo test test-slow lint fmt types install install-test docker bench clean down

help: ## what each command does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11 ..."; exit 1; }
	@echo "install: creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# What the demo needs. The stamps hold a hash of what was asked for, so a second run costs nothing.
$(VENV)/.demo: pyproject.toml envs/alfworld/requirements.txt | $(BIN)/python
	@echo "install: torch, platform, trainer, dashboard (minutes the first time)"
	@$(PIP) install -U pip wheel setuptools
	@$(PIP) install "$(TORCH)"
	@$(PIP) install -e '.[train,dashboard]'
	@$(PIP) install --no-deps -r envs/alfworld/requirements.txt
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.demo
	@echo "install: test tools"
	@$(PIP) install -e '.[train,dashboard,postgres,dev]'
	@touch $@

install: $(VENV)/.demo ## platform, trainer and dashboard into .venv

install-test: $(VENV)/.test

docker: ## use, or install and start, a Docker engine if this user can
	@tools/ensure-docker.sh || true

demo: install docker ## real games in sandboxes, a model that learns from them, a page that shows it
	@tools/ensure-system.sh bwrap:bubblewrap
	@$(BIN)/python -m benchmarks.demo --recipe $(RECIPE)

test: install-test docker ## lint, types, import rules and every test
	@tools/ensure-system.sh bwrap:bubblewrap chromium:chromium '/usr/lib/postgresql/*/bin/initdb:postgresql'
	@$(MAKE) --no-print-directory lint types
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow" $(ARGS)

test-slow: install-test docker ## the checks that take minutes
	@$(BIN)/python -m pytest -m slow $(ARGS)

lint: install-test ## ruff and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

types: install-test ## mypy, strict on the cores
	@$(BIN)/mypy

fmt: install-test ## format and mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: install-test docker ## the numbers of the README, quick versions
	@for b in $$($(BIN)/python -m benchmarks); do echo "== $$b"; $(BIN)/python -m benchmarks.$$b --quick || exit 1; done

down: ## stop the platform, the dashboard and every sandbox
	@[ ! -x $(BIN)/rock ] || $(BIN)/rock down

clean: down ## stop everything, remove the virtual environment and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
