#!/usr/bin/env bash
# Run this experiment; results go to experiments/tinyllama_1.1b_lora_grid/results/. Extra arguments go to `tamperdose run`.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
exec .venv/bin/tamperdose run experiments/tinyllama_1.1b_lora_grid/study.yaml "$@"
