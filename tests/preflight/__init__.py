"""A run on fabricated files with a tiny model, looked at before Ray."""

from copy import deepcopy
from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from omegaconf import OmegaConf

from srpo_verl.preflight.findings import ERROR
from tests.config import compose
from tests.support import REWARD_FILE

TOY = f"reward.custom_reward_function.path={REWARD_FILE}"


def row(question="1 + 1 = ?", answer="A", source="sciknoweval/test", **columns):
    """A row in veRL's columns, with the verifier of the letters."""
    return {
        "prompt": [{"role": "user", "content": question}],
        "data_source": source,
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": 0},
        **columns,
    }


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@cache
def _composed(name):
    """A small run with the letters' verifier."""
    teacher = ["srpo.distillation.top_k=20", "srpo.demonstration.max_prompt_tokens=200"] if name == "srpo" else []
    return compose(
        name,
        "platform=cpu",
        "reward.custom_reward_function.path=pkg://srpo_verl.rewards",
        "data.train_batch_size=4",
        "data.max_prompt_length=64",
        "data.max_response_length=16",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        *teacher,
    )


def configure(model, train, val, *overrides, name="srpo"):
    """The configuration of a run that passes, changed by the overrides (composed once; composing is slow)."""
    config = deepcopy(_composed(name))
    files = [f"actor_rollout_ref.model.path={model}", f"data.train_files={train}", f"data.val_files={val}"]
    for override in [*files, *overrides]:
        key, _, value = override.partition("=")
        OmegaConf.update(config, key, yaml.safe_load(value), force_add=True)
    return config


def only_error(findings):
    """The one error among the findings."""
    wrong = [finding for finding in findings if finding.level == ERROR]
    assert len(wrong) == 1, [str(finding) for finding in wrong]
    return wrong[0]


GOOD = [row() for _ in range(5)]

LIMIT = "srpo.demonstration.max_prompt_tokens"
TEMPLATE, ADDED = 19, len("\n\nCorrect solution:\n\n" + "\n\nCorrectly solve the original question.\n")
BARE = len("1 + 1 = ?") + TEMPLATE + ADDED
"""Tokens of a teacher's prompt around an empty demonstration. For a demonstration 16 / 8 = 2 more are needed."""
