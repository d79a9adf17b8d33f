"""A deterministic reward with variance between samples: the share of digits among the characters."""


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None) -> float:
    """Share of digits in the response."""
    return sum(character.isdigit() for character in solution_str) / max(len(solution_str), 1)


def nothing(data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None) -> float:
    """A verifier that pays nobody."""
    return 0.0
