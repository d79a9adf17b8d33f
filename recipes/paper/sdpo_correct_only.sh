#!/usr/bin/env bash
# SDPO on the correct rollouts only: Figure 1(b).
#   bash recipes/paper/sdpo_correct_only.sh benchmark=physics base_model=qwen3_4b
set -euo pipefail
exec python -m verl.trainer.main_ppo --config-path pkg://srpo_verl.config --config-name sdpo_correct_only \
    base_model=qwen3_8b benchmark=chemistry "$@"
