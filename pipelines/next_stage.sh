#!/usr/bin/env bash
# The next training stage of the built-in pipelines on a GPU, under ten minutes in all: `make gpu` runs it.
# Each run goes on from its newest checkpoint in runs/, or starts from the built-in weights; then `pipelines/ship.py`.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
MORE_STEPS=${MORE_STEPS:-6000}

for name in shapes-masked shapes-flow shapes-ar; do
  folder=runs/gpu-$name
  resume=()
  if [ -d "$folder/checkpoints" ]; then resume=(--resume); fi
  timeout 180 "$PYTHON" pipelines/train.py "$name" --init-from "$name" --output-dir "$folder" --steps "$MORE_STEPS" --batch-size 64 \
    --precision bf16 --learning-rate 1e-3 --warmup-steps 100 --ema-decay 0.999 --objects 1 1 2 --cached-clips 8192 \
    --cache-dir runs/cache --validate-every 1000 --checkpoint-every 500 --sample-every 0 "${resume[@]}" || echo "$name: stopped, goes on next time"
  if [ -d "$folder/model" ]; then "$PYTHON" pipelines/ship.py "$folder" "$name"; fi
done
