"""The reward function: is it there, and can it be asked whether it reads a ground truth?

A module of a reward function may define two names beside the function:

    validate_ground_truth(data_source, ground_truth) -> None    raises ValueError with the reason
    FEEDBACK_TEXTS: tuple[str, ...]                             everything its `feedback` can say

`srpo_verl.rewards` does. The module is imported only if it defines one of them: importing may be expensive (a judge
model, say), and is otherwise left to veRL's reward workers.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo_verl.preflight.findings import ERROR, NOTE, Finding
from srpo_verl.preflight.loading import load_extern_object

SUBJECT = "reward function"
PATH, NAME = "reward.custom_reward_function.path", "reward.custom_reward_function.name"
VALIDATE, TEXTS = "validate_ground_truth", "FEEDBACK_TEXTS"


@dataclass(frozen=True)
class Verifier:
    """What a reward function's module offers besides the reward. None: it cannot be asked."""

    validate: Callable[[str, Any], None] | None = None
    feedback_texts: tuple[str, ...] | None = None


def find_verifier(path: str | None, name: str | None) -> tuple[Verifier, list[Finding]]:
    """Find the reward function that is configured, without calling it.

    Args:
        path: reward.custom_reward_function.path: a file, or pkg:// and a module.
        name: of the function in it.
    """
    if not path:
        return Verifier(), [Finding(NOTE, SUBJECT, "veRL's own: data sources and ground truths are unchecked")]
    try:
        names = _top_level_names(_source(path))
    except (OSError, ImportError, SyntaxError, ValueError) as error:
        return Verifier(), [Finding(ERROR, SUBJECT, f"{PATH}={path!r}: {error}", "correct the path or the file")]
    if "*" not in names and name not in names:
        return Verifier(), [Finding(ERROR, SUBJECT, f"{NAME}={name!r}: not in {path}", "name a function of that file")]
    offered = {VALIDATE, TEXTS} & names
    if not offered:
        message = f"{path} defines no {VALIDATE}: ground truths are unchecked"
        return Verifier(), [Finding(NOTE, SUBJECT, message)]
    try:
        found = {each: load_extern_object(path, each) for each in offered}
    except Exception as error:
        cause = error.__cause__ or error
        message = f"{PATH}={path!r}: {type(cause).__name__}: {cause}"
        return Verifier(), [Finding(ERROR, SUBJECT, message, "the file has to be importable")]
    texts = found.get(TEXTS)
    return Verifier(found.get(VALIDATE), None if texts is None else tuple(texts)), []


def _source(path: str) -> str:
    """The source of the module. OSError or ImportError where there is none; an extension module has ""."""
    if path.startswith("pkg://"):
        module = path.removeprefix("pkg://").replace("/", ".")
        spec = importlib.util.find_spec(module)
        if spec is None:
            raise ImportError(f"there is no module {module}")
        if spec.origin is None or not spec.origin.endswith(".py"):
            raise ImportError(f"{module} is no Python source")
        return Path(spec.origin).read_text(encoding="utf-8")
    file = Path(path.removeprefix("file://"))
    if not file.is_file():
        raise FileNotFoundError("no such file")
    return file.read_text(encoding="utf-8")


def _top_level_names(source: str) -> set[str]:
    """Names that a module binds when it is imported; "*" among them where an import hides some."""
    return set(_bound(ast.parse(source).body))


def _bound(statements: list[ast.stmt]) -> Iterator[str]:
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in statement.names)
        else:
            for node in ast.iter_child_nodes(statement):
                if isinstance(node, ast.stmt | ast.ExceptHandler):
                    yield from _bound([node] if isinstance(node, ast.stmt) else node.body)
                else:
                    yield from (
                        part.id
                        for part in ast.walk(node)
                        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
                    )
