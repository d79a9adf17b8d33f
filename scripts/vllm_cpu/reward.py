"""A reward that a random model meets now and then: enough digits among its characters.

Standard library only: veRL's reward workers load this file by its path.
"""

ENOUGH = 5
"""Of up to twelve tokens. Ten of the 27 in the vocabulary are digits: every fourth random response has as many."""


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None) -> float:
    """1.0 for a response with at least `ENOUGH` digits, else 0.0."""
    return float(sum(character.isdigit() for character in solution_str) >= ENOUGH)
