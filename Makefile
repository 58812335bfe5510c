# make demo    the whole loop on built-in data, results in runs/demo/
# make test    every check and every test
# make lint    formatting, lint, types, layers        make unit    the fast tests only
# make lock    renew requirements.lock                make clean   remove what was made
#
# Each creates the environment .venv when it is missing or older than its description.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:
.NOTPARALLEL:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FOLDERS := $(wildcard benchmarks cli compile device_db latency search supernet tests tools examples)
TYPED := $(addprefix -p bignas.,cli compile device_db latency search supernet)
LOCK_VENV := build/lock-venv

.PHONY: demo test lint unit slow install lock clean

demo: $(INSTALLED)
	$(BIN)/bignas demo --out runs/demo

test: lint unit slow

# pip is renewed first: version 23 leaves protobuf at a version that onnx refuses
$(INSTALLED): pyproject.toml requirements.lock
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

install: $(INSTALLED)

lint: $(INSTALLED)
	$(BIN)/ruff check $(FOLDERS)
	$(BIN)/ruff format --check $(FOLDERS)
	$(BIN)/python tools/link_farm.py
	$(BIN)/mypy $(TYPED)
	$(BIN)/mypy tests tools $(wildcard benchmarks/*.py examples/*.py)
	$(BIN)/lint-imports

unit: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' -n 2

slow: $(INSTALLED)
	$(BIN)/pytest -m slow

lock:
	$(PYTHON) -m venv --clear $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(LOCK_VENV)/bin/python -m pip install --quiet --dry-run --report build/lock.json --editable '.[dev]'
	$(LOCK_VENV)/bin/python tools/write_lock.py build/lock.json requirements.lock
	rm -rf $(LOCK_VENV) build/lock.json

clean:
	rm -rf build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
