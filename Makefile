# `make test` and `make train` work on a fresh machine: they make their own environment first.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKDIR ?= runs/debug
MINI := runs/mini
MINI_ASSETS := perception_r1_jax/assets/mini
WORLD := $(wildcard perception_r1_jax/data/geometry_world/*.py perception_r1_jax/data/geometry_world/*/*.py)
# Where the ablation's records, tables and charts are. Runs recorded there are not repeated: for runs of your own,
# `make claim CLAIM=runs/claim/records`.
CLAIM ?= docs/claim
# Two processes of some 3 GB each: tests wait for compilers and deadlines more than for one another.
PARALLEL := -n 2 --dist loadfile

.PHONY: train claim mini-inputs test test-slow lint environment

train: $(READY)
	$(BIN)/python scripts/train.py --config configs/debug.py --workdir $(WORKDIR)

# About 3 hours on 2 cores; stopped at any time it goes on where it was.
claim: mini-inputs
	$(BIN)/python scripts/claim.py --out $(CLAIM)

# The small world as files and the two embedded models, converted: what configs/mini.py names.
mini-inputs: $(MINI)/data/test.parquet $(MINI)/models/policy/params $(MINI)/models/judge/params

$(MINI)/data/test.parquet: $(WORLD) | $(READY)
	$(BIN)/python -m perception_r1_jax.data.geometry_world --out $(@D)

$(MINI)/models/%/params: $(MINI_ASSETS)/%/model.safetensors | $(READY)
	rm -rf $(@D)
	$(BIN)/python -m tools.convert_weights.hf_to_jax --hf $(<D) --out $(@D)

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
