#!/usr/bin/env bash
# The untrained model's validation, no training: Table 1, the rows without a method.
#   bash recipes/paper/base.sh benchmark=physics base_model=qwen3_4b
set -euo pipefail
exec python -m verl.trainer.main_ppo --config-path pkg://srpo_verl.config --config-name grpo \
    base_model=qwen3_8b benchmark=chemistry \
    trainer.experiment_name=base trainer.val_only=true trainer.resume_mode=disable "$@"
