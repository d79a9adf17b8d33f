"""Hooks of mkdocs: pages from outside of docs/, links between all of them, API pages, formulas as MathML."""

from __future__ import annotations

import ast
import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "scripts/vllm_cpu/README.md": "scripts/vllm_cpu.md",
    **{
        f"recipes/{path.parent.name}/README.md": f"recipes/{path.parent.name}.md"
        for path in ROOT.glob("recipes/*/*.md")
    },
}
"""Place in the repository -> place in the site, of pages that are not in docs/."""

API = {
    "rewards": ("srpo_verl.rewards", ["srpo_verl.rewards"]),
    "teacher": (
        "srpo_verl.teacher",
        [f"srpo_verl.teacher.{name}" for name in ("reprompt", "dialogue", "memory", "ema")],
    ),
}
"""Page -> title, modules; besides the functions of `srpo_verl.functional`."""

LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def functions() -> list[str]:
    """Full names of what `srpo_verl.functional` exports, in the order of its imports."""
    tree = ast.parse((ROOT / "srpo_verl" / "functional.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [f"{node.module}.{alias.name}" for node in imports for alias in node.names]


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files of docs/."""
    for source, place in MOVED.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, place, content=(ROOT / source).read_text()))
    pages = {"functional": ("srpo_verl.functional", functions()), **API}
    for name, (title, members) in pages.items():
        blocks = "\n\n".join(f"::: {member}" for member in members)
        files.append(File.generated(config, f"api/{name}.md", content=f"# {title}\n\n{blocks}\n"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages; those to other files into their text."""
    place = page.file.src_uri
    source = {site: repository for repository, site in MOVED.items()}.get(place, f"docs/{place}")

    def link(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        goal = MOVED.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if (ROOT / path).is_dir() or (goal is None and (ROOT / path).exists()):
            return "]()"
        goal = goal or target
        return f"]({posixpath.relpath(goal, posixpath.dirname(place) or '.')}{anchor})"

    return re.sub(r"(?<!!)\[([^\[\]]+)\]\(\)", r"\1", LINK.sub(link, markdown))


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers show without a script."""

    def formula(match: re.Match[str]) -> str:
        text = html.unescape(match[2]).strip()
        return convert(text[2:-2], display="block" if text.startswith("\\[") else "inline")

    return FORMULA.sub(formula, content)
