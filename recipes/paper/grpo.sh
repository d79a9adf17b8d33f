#!/usr/bin/env bash
# GRPO: Table 1, Figures 3 and 4.
#   bash recipes/paper/grpo.sh benchmark=physics base_model=qwen3_4b
set -euo pipefail
exec python -m verl.trainer.main_ppo --config-path pkg://srpo_verl.config --config-name grpo \
    base_model=qwen3_8b benchmark=chemistry "$@"
