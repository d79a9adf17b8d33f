"""Batches of rollouts by hand, as routing sees them, and what a teacher is shown of them."""

import torch

from srpo_verl.teacher.dialogue import DialogueText
from srpo_verl.verl_ext.router import Rollouts

LIMIT = 200


def decode(ids):
    return "".join(map(chr, ids))


TEXT = DialogueText(lambda ids, skip_special_tokens: decode(ids), ["<|end|>"])


def render(messages, tools):
    return [ord(letter) for part in [*tools, *messages] for letter in part["content"]]


def rollouts(rows):
    """Rows (group, session, reward, text[, feedback]); the question of a group is its name."""
    rows = [(*row, "")[:5] for row in rows]
    return Rollouts(
        keys=[f"{group}_{session}_0" for group, session, *_ in rows],
        uids=[group for group, *_ in rows],
        rewards_B=torch.tensor([row[2] for row in rows]),
        responses=[torch.tensor([ord(letter) for letter in row[3]], dtype=torch.int64) for row in rows],
        response_masks=[torch.ones(len(row[3]), dtype=torch.int64) for row in rows],
        messages=[[{"role": "user", "content": f"Question {row[0]}"}] for row in rows],
        tools=[[]] * len(rows),
        feedback=[row[4] for row in rows],
    )


def shown(routed, row):
    """The demonstration in a row's teacher prompt."""
    text = decode(routed.reprompts[row].token_ids)
    return text.split("Correct solution:\n\n")[1].split("\n\nCorrectly solve")[0]


MIXED = [
    ("a-1", 0, 0.0, "a zero"),
    ("a-1", 1, 1.0, "a one, correct"),
    ("a-1", 2, 0.5, "a two, correct at the threshold"),
    ("b_2", 0, 0.4, "b zero"),
    ("b_2", 1, 0.0, "b one"),
    ("b_2", 2, 0.0, "b two"),
    ("c", 0, 0.0, "c zero"),
    ("c", 1, 0.0, "c one"),
    ("c", 2, 1.0, "c two"),
]
