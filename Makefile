# Two commands do everything: `make demo` shows it, `make test` checks it. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# Packages that are built from source may call a plain `python`, which Debian does not have: .venv's is on the path.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m
# The Python that .venv is made of; empty: the first of python3, python3.12, python3.11, python3.13 that is new enough.
PYTHON ?=
# Pinned and installed first. Any torch from 2.9 on will do: make TORCH='torch>=2.9' ...
TORCH ?= torch==2.13.0
RECIPE ?= alfworld-tiny
# Tests at once; each torch test keeps to one thread.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
ARGS ?=
export PYTHON TORCH

.PHONY: help demo test test-slow lint types fmt install install-test docker system bench screenshots down clean

help: ## this list
	@echo "usage: make TARGET [VARIABLE=value ...]"; echo
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
	@echo
	@echo "  ARGS='...'       more arguments for demo, test, test-slow, bench, screenshots: make demo ARGS='--seeds 0,1,2 --down'"
	@echo "  RECIPE=$(RECIPE)   what make demo trains"
	@echo "  JOBS=$(JOBS)           tests at once"
	@echo "  TORCH='$(TORCH)'   what pip installs first; may hold options of pip"
	@echo "  PYTHON=...       the Python to make $(VENV) of (3.11 or newer)"

install: ## platform, trainer and dashboard into .venv
	@tools/install.sh demo

install-test:
	@tools/install.sh test

system:
	@tools/ensure-system.sh bwrap:bubblewrap c++:g++ cmake:cmake

docker: ## use, or install and start, a Docker engine if this user can
	@tools/ensure-docker.sh || true

demo: system install docker ## real games in sandboxes, a model that learns from them, a page that shows it
	@$(RUN) benchmarks.demo --recipe $(RECIPE) $(ARGS)

test: system install-test docker ## lint, types, import rules and every test but the slow ones
	@tools/ensure-system.sh chromium:chromium '/usr/lib/postgresql/*/bin/initdb:postgresql'
	@$(MAKE) --no-print-directory lint types
	@$(RUN) pytest -n $(JOBS) --dist loadgroup -m "not slow" $(ARGS)

test-slow: system install-test docker ## the tests that take minutes
	@$(RUN) pytest -m slow $(ARGS)

lint: install-test ## ruff and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

types: install-test ## mypy, strict on the cores
	@$(BIN)/mypy

fmt: install-test ## format and mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: system install-test ## the benchmarks, quick versions; each prints JSON
	@for b in $$($(BIN)/python -m benchmarks); do echo "== $$b"; $(RUN) benchmarks.$$b --quick $(ARGS) || exit 1; done

screenshots: ## pictures of the page of the platform that runs here, into docs/img
	@tools/ensure-system.sh chromium:chromium
	@$(RUN) dashboard.screenshots --out docs/img $(ARGS)

down: ## stop the platform, the dashboard and every sandbox
	@[ ! -x $(BIN)/rock ] || $(BIN)/rock dashboard --stop
	@[ ! -x $(BIN)/rock ] || $(BIN)/rock down

clean: ## stop everything, remove .venv and caches; ~/.rock and Docker images stay
	-@$(MAKE) --no-print-directory down
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
