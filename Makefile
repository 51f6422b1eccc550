# Everything a fresh machine needs beyond Python 3.11 or later and make is
# installed here, into .venv, from locks with hashes.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PROTOS := $(shell find protos -name '*.proto')

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: .venv/runtime ## Serve on 127.0.0.1:50051 over SQLite in ./data.
	@exec $(BIN)/infrascout-sessions serve

.PHONY: demo
demo: .venv/runtime ## Record a real session of this host and print it.
	@$(BIN)/infrascout-sessions demo

.PHONY: test
test: .venv/development ## Run the tests.
	@$(BIN)/pytest $(PYTEST_ARGS)

.PHONY: check
check: .venv/development ## Format, lint, types, buf, generated code fresh.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(BIN)/python tests/generated_code.py

.PHONY: format
format: .venv/development ## Format Python and protos in place.
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/buf format --write

.PHONY: proto
proto: .venv/development ## Generate generated/ from protos/.
	@$(BIN)/python tests/generated_code.py --write

.PHONY: bench
bench: .venv/development ## Measure against the bare server of bench/noop.py.
	@$(BIN)/python -m bench

.PHONY: lock
lock: .venv/development ## Resolve the locks anew from pyproject.toml.
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate $(LOCK_ARGS) pyproject.toml --group install -o requirements/runtime.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate $(LOCK_ARGS) pyproject.toml --group dev -o requirements/development.txt

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv .venv

.venv/%: requirements/%.txt pyproject.toml | .venv/bin/python
	@echo "Installing what requirements/$*.txt locks into .venv …"
	@$(PIP) install --require-hashes -r $<
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
