"""`make docs`: the site is built without warnings, from the pages as they stand."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from srpo_verl import functional

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_is_built_without_warnings_and_has_every_page(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    for page in (ROOT / "docs").rglob("*.md"):
        shown = (tmp_path / page.relative_to(ROOT / "docs").with_suffix("") / "index.html").read_text()
        (heading,) = re.findall(r"<h1[^>]*>(.*?)<a ", shown, re.DOTALL)
        assert html.unescape(heading) == page.read_text().partition("\n")[0].removeprefix("# "), page.name
    api = (tmp_path / "api" / "functional" / "index.html").read_text()
    for name in functional.__all__:
        assert name in api
    assert api.count("Source code in") >= 15
    assert "of shape (" in api.replace("\n", " ")
    # A sign at the beginning of a description is not taken for a quotation.
    assert "<blockquote>" not in api
    assert "srpo_objective" in (tmp_path / "search" / "search_index.json").read_text()
    assert "<math" in (tmp_path / "algorithm" / "index.html").read_text()
