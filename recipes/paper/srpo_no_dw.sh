#!/usr/bin/env bash
# SRPO without dynamic weighting: Table 2.
#   bash recipes/paper/srpo_no_dw.sh benchmark=physics base_model=qwen3_4b
set -euo pipefail
exec python -m verl.trainer.main_ppo --config-path pkg://srpo_verl.config --config-name srpo_no_dw \
    base_model=qwen3_8b benchmark=chemistry "$@"
