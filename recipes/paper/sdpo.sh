#!/usr/bin/env bash
# SDPO: Table 1, Figures 1, 3 and 4.
#   bash recipes/paper/sdpo.sh benchmark=physics base_model=qwen3_4b
set -euo pipefail
exec python -m verl.trainer.main_ppo --config-path pkg://srpo_verl.config --config-name sdpo \
    base_model=qwen3_8b benchmark=chemistry "$@"
