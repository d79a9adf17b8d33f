#!/usr/bin/env bash
# SRPO: Tables 1 and 2, Figures 3 to 5.
#   bash recipes/paper/srpo.sh benchmark=physics base_model=qwen3_4b
set -euo pipefail
exec python -m verl.trainer.main_ppo --config-path pkg://srpo_verl.config --config-name srpo \
    base_model=qwen3_8b benchmark=chemistry "$@"
