# `make demo` and `make test` need a Python (3.10 to 3.13) with its venv module and a package registry, nothing else.

# Settings for the caller's other Python projects must not reach this one.
unexport PYTHONHOME PYTHONPATH PYTHONOPTIMIZE PYTHONWARNINGS VIRTUAL_ENV
export DAGSTER_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo up test check lock clean

help:
	@echo 'make demo    process a sample class and print its attendance'
	@echo 'make test    the checks below, then all tests (ARGS="-k name" chooses some)'
	@echo 'make check   style, types, and that Dagster loads the definitions'
	@echo 'make up      the Dagster UI and its daemon on http://127.0.0.1:3000 (ARGS="--watch PHOTOS")'
	@echo 'make setup   only make .venv; PYTHON=/path/to/python3 chooses the interpreter'
	@echo 'make lock    pin the packages anew in constraints.txt after a change in pyproject.toml'
	@echo 'make clean   remove .venv and caches; your data in .attendansee stays'

setup:
	@sh tools/bootstrap.sh

demo: setup
	@.venv/bin/attendansee demo

up: setup
	@.venv/bin/attendansee up $(ARGS)

# All of it on every core, four at most, for each process has servers and networks of its own.
test: check
	.venv/bin/python -m pytest $(or $(ARGS),-n logical --maxprocesses 4 --dist worksteal)

check: setup
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m mypy
	.venv/bin/dg check defs

# All supported Pythons get their pins; the ones there now are kept unless pyproject.toml forbids them.
lock: setup
	.venv/bin/python -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet uv
	.venv/lock/bin/uv pip compile --quiet --native-tls --universal --python-version 3.10 --extra dev --extra demo --extra scale-out \
		--no-annotate --no-header --no-emit-index-url pyproject.toml --output-file constraints.txt

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
