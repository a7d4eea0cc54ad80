#!/usr/bin/env bash
# Run this experiment; results go to experiments/smollm2_135m_attacks/results/. Extra arguments go to `tamperdose run`.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
exec .venv/bin/tamperdose run experiments/smollm2_135m_attacks/study.yaml "$@"
