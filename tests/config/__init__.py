"""Composing the shipped configurations on stock veRL, as `main_ppo --config-name NAME OVERRIDES` does."""

from typing import Any

PAPER = ("srpo", "sdpo", "grpo", "srpo_no_dw", "advantage_mix", "sdpo_correct_only", "sdpo_failed_only")
NAMES = (*PAPER, "srpo_handover", "sc_sdpo", "rlsd", "opsd", "srpo_memory", "srpo_anneal")


def compose(name: str, *overrides: str) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    with initialize_config_module(config_module="srpo_verl.config", version_base=None):
        return hydra_compose(name, list(overrides))
