#!/usr/bin/env bash
# Run this experiment; results go to experiments/organism_defences/results/. Extra arguments go to `tamperdose run`.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
exec .venv/bin/tamperdose run experiments/organism_defences/study.yaml "$@"
