#!/usr/bin/env bash
# The next training stage of the built-in pipelines, within a budget: `pipelines/next_stage.sh [SECONDS]`; `make gpu` runs it.
# The first one that is not finished goes on from its newest checkpoint in runs/, or starts from the built-in weights; once it
# is finished `pipelines/ship.py` puts it among them, and the next one begins. `… SECONDS FOLDER` is a try: two steps of the
# first one on a CPU, into FOLDER, and nothing is shipped.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
budget=${1:-540}
dry=${2:-}
SHIPPING=40 # seconds that must be left once a training is finished

train() { # NAME FOLDER SECONDS [OPTIONS]: true when it came to its end
  local resume=()
  if [ -d "$2/checkpoints" ]; then resume=(--resume); fi
  timeout --foreground "$3" "$PYTHON" pipelines/train.py "$1" --init-from "$1" --output-dir "$2" --precision bf16 \
    --learning-rate 1e-3 --warmup-steps 100 --ema-decay 0.999 --objects 1 1 2 --sample-every 0 "${@:4}" "${resume[@]}"
}

if [ -n "$dry" ]; then
  train shapes-masked "$dry/shapes-masked" "$budget" --steps 2 --batch-size 1 --cached-clips 2 --cache-dir "$dry/cache" \
    --device cpu --validate-every 0
  exit
fi
for name in shapes-masked shapes-flow shapes-ar; do
  folder=runs/gpu-$name
  if [ -e "$folder/shipped" ]; then # model/ is there from the first checkpoint on
    echo "$name is finished; remove $folder for another round"
    continue
  fi
  left=$((budget - SECONDS - SHIPPING))
  if [ "$left" -le 0 ]; then break; fi
  if train "$name" "$folder" "$left" --steps "${MORE_STEPS:-6000}" --batch-size 64 --cached-clips 8192 \
    --cache-dir runs/cache --validate-every 1000 --checkpoint-every 500; then
    "$PYTHON" pipelines/ship.py "$folder" "$name"
    touch "$folder/shipped"
  else
    echo "$name: stopped, goes on next time"
    break
  fi
done
