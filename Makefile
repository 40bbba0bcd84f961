# Needs python3 (3.11 or newer) and PyPI, nothing else: everything goes into .venv.
# Another interpreter: make PYTHON=python3.12 install

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Newer than pyproject.toml and constraints.txt = the environment is what they say.
STAMP  := $(VENV)/.installed
# Processes of the tests. Each starts an AIStore cluster of its own, where there is an aisnode.
JOBS   ?= 2
EXTRAS := daemon,torch,demo,dev,bench

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint format types coverage bench clean

help:  ## say what each word does
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv, or bring it up to date

demo: $(STAMP)  ## train on real data through a daemon, with both of them killed on the way
	@$(BIN)/headrace demo

test: $(STAMP)  ## run the tests (JOBS=n: in n processes; HYPOTHESIS_PROFILE=thorough: many more examples)
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=worksteal

check: lint types test  ## lint, types and test: all that must be green

lint: $(STAMP)  ## check format, style, spelling and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/lint-imports

format: $(STAMP)  ## format the code and fix what can be fixed safely
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: $(STAMP)  ## check types
	$(BIN)/mypy --strict

coverage: $(STAMP)  ## run the tests and list the lines and branches they miss
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bench: $(STAMP)  ## run every benchmark, one after the other
	@set -e; for script in $(sort $(wildcard benchmarks/bench_*.py)); do \
		name=$${script#benchmarks/}; \
		printf '\n== %s\n' "$$script"; \
		$(BIN)/python -m "benchmarks.$${name%.py}"; \
	done

clean:  ## remove all that make has made, .venv too
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* \
		.hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "error: no $(PYTHON) on PATH. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3 install" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Headrace needs Python 3.11 or newer, and %s is %d.%d. Name a newer one: make PYTHON=python3.12 install" % ((sys.executable,) + sys.version_info[:2]))'
	@$(PYTHON) -m venv $(VENV) || { \
		echo "error: '$(PYTHON) -m venv' failed. Debian and Ubuntu keep it in a package of its own: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python --editable '.[$(EXTRAS)]' --constraint constraints.txt
	@touch $@
