# Every job of this repository in one word; `make` alone lists them.
# `make demo` and `make test` do all the set-up on a fresh machine.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-from-pyproject
export HF_HUB_OFFLINE ?= 1
# AMX ends processes with "Illegal instruction" on some virtual machines (docs/pitfalls.md); CPUs without it lose nothing.
export ONEDNN_MAX_CPU_ISA ?= AVX512_CORE_FP16
GPU_SECONDS ?= 570

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format scores gallery gpu clean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

# The stamp is newer than pyproject.toml when the environment holds what it asks for.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "vidgen needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Run: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev,text]"
	@touch $(STAMP)

setup: $(STAMP)  ## make .venv and install vidgen with everything the demo and the tests need

demo: setup  ## a prompt becomes a video with each of the three generators; a clip is reconstructed and scored
	$(BIN)/python pipelines/demo.py --out outputs

test: setup  ## the default tests (under 5 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: setup  ## the tests that take longer
	$(BIN)/python -m pytest -q -m "slow and not gpu and not external"

check: setup  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

scores: setup  ## make every number under eval/results/ again (long)
	$(BIN)/python eval/scores.py

gallery: setup  ## make the pictures of the README again from the built-in weights
	$(BIN)/python eval/gallery.py

gpu: setup  ## on a CUDA machine, in under 10 minutes: GPU tests, kernel tables, next training stage; call again to go on
	$(BIN)/python eval/gpu.py --seconds $(GPU_SECONDS)

clean:  ## remove caches and outputs (not the environment, not runs/)
	rm -rf outputs .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -type d -prune -exec rm -rf {} +
