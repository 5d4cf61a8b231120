# `make test` and `make train` work on a fresh machine: they make their own environment first.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MINI := runs/mini
WORKDIR ?= $(MINI)/run
MINI_SFT := runs/mini_sft
MINI_ASSETS := perception_r1_jax/assets/mini
WORLD := $(wildcard perception_r1_jax/data/geometry_world/*.py perception_r1_jax/data/geometry_world/*/*.py)
# The test problems of seed 0 were looked at on the way to this recipe; these are new to it.
WORLD_SEED := 1
# Where the ablation's records, tables and charts go. Those of the runs that docs/claim.md reports are in docs/claim.
CLAIM ?= runs/claim/records
# Two processes of some 3 GB each: tests wait for compilers and deadlines more than for one another. In the files' order
# short ones come last; by their numbers of tests, as xdist would have them, those of few and long tests.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder --durations 15

.PHONY: train claim mini-inputs mini-models test test-slow test-gpu lint environment

# Perception-R1 in miniature, and its report. Stopped at any time it goes on where it was.
train: mini-inputs
	$(BIN)/python scripts/train.py --config configs/mini.py --workdir $(WORKDIR)
	$(BIN)/python scripts/report.py $(WORKDIR)

# About 90 minutes on 2 cores; stopped at any time it goes on where it was.
claim: mini-inputs
	$(BIN)/python scripts/claim.py --out $(CLAIM)

# The small world as files and the two embedded models, converted: what configs/mini.py names.
mini-inputs: $(MINI)/data/test.parquet $(MINI)/models/policy/params $(MINI)/models/judge/params

$(MINI)/data/test.parquet: Makefile $(WORLD) | $(READY)
	$(BIN)/python -m perception_r1_jax.data.geometry_world --seed $(WORLD_SEED) --out $(@D)

$(MINI)/models/%/params: $(MINI_ASSETS)/%/model.safetensors | $(READY)
	rm -rf $(@D)
	$(BIN)/python -m tools.convert_weights.hf_to_jax --hf $(<D) --out $(@D)

# The small policy and judge from nothing, some three and a half hours on 2 cores; the configs say what each stage learns.
mini-models: $(READY)
	rm -rf $(MINI_SFT)/policy_start $(MINI_SFT)/judge_start
	$(BIN)/python scripts/make_tokenizer.py --corpus world --out $(MINI_SFT)/tokenizer
	$(BIN)/python scripts/make_tokenizer.py --corpus judge --out $(MINI_SFT)/judge_tokenizer
	$(BIN)/python scripts/make_random_checkpoint.py --family qwen2_5_vl --scale 3 --spread 0 \
		--tokenizer $(MINI_SFT)/tokenizer --config_overrides configs/mini_policy.json \
		--preprocessor_overrides configs/mini_preprocessor.json --out $(MINI_SFT)/policy_start
	$(BIN)/python scripts/make_random_checkpoint.py --family qwen2 --scale 3 --spread 0 \
		--tokenizer $(MINI_SFT)/judge_tokenizer --config_overrides configs/mini_judge.json --out $(MINI_SFT)/judge_start
	for stage in reading binding policy judge; do \
		$(BIN)/python scripts/sft.py --config configs/mini_sft_$$stage.py --workdir $(MINI_SFT)/$$stage || exit 1; done
	for model in policy judge; do \
		rm -rf $(MINI_SFT)/hf/$$model; \
		$(BIN)/python -m tools.convert_weights.jax_to_hf --checkpoint $(MINI_SFT)/$$model \
			--out $(MINI_SFT)/hf/$$model --dtype bfloat16 || exit 1; done

test: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Needs jax[cuda] in the environment.
test-gpu: $(READY)
	JAX_PLATFORMS=cuda $(BIN)/python -m pytest -m gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

environment: $(READY)

$(READY): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
