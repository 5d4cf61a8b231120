# `make test` and `make train` work on a fresh machine: they make their own environment first.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKDIR ?= runs/debug
# Two processes of some 3 GB each: tests wait for compilers and deadlines more than for one another.
PARALLEL := -n 2 --dist loadfile

.PHONY: train test test-slow lint environment

train: $(READY)
	$(BIN)/python scripts/train.py --config configs/debug.py --workdir $(WORKDIR)

test: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

environment: $(READY)

$(READY): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
