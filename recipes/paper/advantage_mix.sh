#!/usr/bin/env bash
# Advantage Mix, both losses on every sample: Table 2.
#   bash recipes/paper/advantage_mix.sh benchmark=physics base_model=qwen3_4b
set -euo pipefail
exec python -m verl.trainer.main_ppo --config-path pkg://srpo_verl.config --config-name advantage_mix \
    base_model=qwen3_8b benchmark=chemistry "$@"
