"""The public face: what it exports, and that it needs torch alone."""

import subprocess
import sys

import srpo_verl.functional as functional

PUBLIC = {
    "Routing",
    "TokenLosses",
    "distillation_loss",
    "entropy_weights",
    "group_advantages",
    "importance_ratio",
    "objective_summands",
    "pass_rate_weights",
    "Rows",
    "Shares",
    "ppo_token_loss",
    "route_samples",
    "score_teacher",
    "srpo_objective",
    "teacher_ratio_advantages",
    "token_losses",
    "topk_support",
}


def test_exports_exactly_the_documented_names():
    assert set(functional.__all__) == PUBLIC
    assert all(callable(getattr(functional, name)) for name in PUBLIC)


def test_every_function_names_its_equation():
    for name in PUBLIC - {"Routing", "Rows", "Shares", "TokenLosses"}:
        doc = getattr(functional, name).__doc__.lower()
        assert "equation (" in doc, name
        assert "Raises:".lower() in doc, name


def test_import_loads_neither_verl_nor_ray():
    code = (
        "import sys, srpo_verl.functional\n"
        "heavy = {'verl', 'ray', 'transformers', 'vllm', 'sglang'}\n"
        "loaded = sorted(heavy & {name.split('.')[0] for name in sys.modules})\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
