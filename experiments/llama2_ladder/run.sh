#!/usr/bin/env bash
# Run this experiment; results go to experiments/llama2_ladder/results/. Extra arguments go to `tamperdose run`.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
exec .venv/bin/tamperdose run experiments/llama2_ladder/study.yaml "$@"
