# make quickstart   sets up and trains a small real model on a CPU, about 3 minutes after set-up
# make check        style, types, and the tests that take no process, no model and no long time: under a minute
# make test         sets up, checks style and types, runs all tests, builds the documentation
# make test-gpu     what a CPU cannot show, on the GPUs that are here, in five minutes
# make docs         builds the documentation into site/
# make lock         resolves the versions anew
# make help         these lines
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart check test test-gpu docs lock help
.DELETE_ON_ERROR:

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	    || { echo "medreason needs Python 3.11 to 3.13; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	# compiled once here: an import of Unsloth reads thousands of files, and takes three times as long without
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

.venv/models: .venv/ready
	$(BIN)/python -m medreason.models.embedded
	touch $@

quickstart: .venv/ready .venv/models
	$(BIN)/python -m medreason.train experiments=quickstart

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --quick

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# two threads in each process would wait for each other
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-gpu: .venv/ready
	$(BIN)/python tests/gpu.py

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file docs/mkdocs.yml

lock:
	$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --no-annotate \
	    $(foreach extra,smollm2 launchers dashboard loggers chat serve docs dev,--extra $(extra)) \
	    --python-version 3.11 pyproject.toml -o requirements.lock

help:
	@sed -n 's/^# \(make \)/\1/p' Makefile
