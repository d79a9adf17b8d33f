"""The page: whole, self-contained, escaped, and drawn by a browser without an error."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from srpo_verl.report.__main__ import main
from srpo_verl.report.figures import FIGURES
from srpo_verl.report.token_view import MAX_STEPS
from tests.report.logs import realistic, record, token_sample, training_line, write

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
METHODS = {"sample": 2, "none": 2, "all": 2, "failed_only": 1, "advantage_mix": 1}
"""Seeds by routing."""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Of runs of five methods, one of which collapses, with token samples that try to get out."""
    root = tmp_path_factory.mktemp("runs")
    for index, (routing, count) in enumerate(METHODS.items()):
        for seed in range(count):
            lines = realistic(60, 0.8 - 0.02 * index, 80, seed + 10 * index, 40 if routing == "all" else None)
            log = write(root / f"{routing}-{seed}" / "log.jsonl", lines)
            record(log, seed=seed, routing=routing)
            if routing == "sample":
                for step in range(1, 12):
                    token_sample(log, step, HOSTILE if step == 11 else "3*7=1;#1\n")
    write(root / "named" / f"{HOSTILE.replace('/', '')[:40]}.jsonl", [training_line(1)])
    out = tmp_path_factory.mktemp("out")
    assert main([str(root), "--out", str(out)]) == 0
    return out / "report.html"


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_needs_nothing_else(page):
    elements = Elements(page.read_text())
    assert {tag for tag, _ in elements.found} >= {"svg", "table", "style", "script"}
    links = [
        value for _, attributes in elements.found for name, value in attributes.items() if name in ("src", "href")
    ]
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert not re.search(r"@import|url\(", page.read_text())
    assert page.stat().st_size < 3_000_000
    # And may not: a browser loads nothing for it, and runs no script but its own.
    (policy,) = [tag["content"] for tag in elements.of("meta") if "http-equiv" in tag]
    assert policy.startswith("default-src 'none'; ")
    assert "script-src 'sha256-" in policy


def test_every_figure_and_table_is_there_with_people_s_names(page):
    text = page.read_text()
    elements = Elements(text)
    sections = {attributes.get("id") for attributes in elements.of("section")}
    assert sections >= {"warnings", "accuracy", "ablation", "tokens", "sources", *FIGURES}
    labels = {attributes["data-label"] for attributes in elements.of("g")}
    assert labels >= {"SRPO", "GRPO", "SDPO", "SDPO, failed only", "Advantage Mix"}
    assert not any(label.startswith("log") for label in labels)  # the name of the files
    assert "SDPO on Chemistry, Qwen3-8B, 2 of 2 runs: length." in text
    assert "69.2" in text  # the paper's, beside


def test_what_models_and_files_say_is_text(page):
    text = page.read_text()
    assert "owned" in text  # it is shown ...
    elements = Elements(text)
    assert elements.of("img") == []  # ... and nothing else
    assert len(elements.of("script")) == 2
    (samples,) = re.findall(r'id="token-samples">(.*?)</script>', text, re.S)
    steps = json.loads(samples)[0]["steps"]
    assert len(steps) == MAX_STEPS
    assert (steps[0]["step"], steps[-1]["step"]) == (1, 11)
    assert "".join(steps[-1]["prompts"][0]["rollouts"][0]["tokens"]) == HOSTILE


def browser():
    """A chromium that starts, or None: half an installation is none."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    works = path and subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    return path if works else None


CHROMIUM = browser()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here that starts, to open the page in")
def test_a_browser_draws_it_without_an_error(page, tmp_path):
    """The script writes the token view into the page: what chromium dumps is what a reader has."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}"]
    command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    assert "<title>owned" not in run.stdout
    drawn = Elements(run.stdout)
    classes = [attributes.get("class") or "" for _, attributes in drawn.found]
    # One prompt of the first sampled step: two rollouts, the newline of the text marked, tokens coloured.
    assert classes.count("rollout") == 2
    assert classes.count("newline") == 2
    styles = [attributes.get("style") or "" for attributes in drawn.of("span")]
    assert sum("--heat" in style for style in styles) >= 5
    assert len(drawn.of("option")) > MAX_STEPS


def test_the_command_writes_its_files_and_says_what_it_left_out(tmp_path, capsys):
    lines = [{"step": step, "data": {"response_length/mean": 30.0}} for step in (1, 2, 3)]
    write(tmp_path / "run" / "a.jsonl", lines)
    assert main([str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "run" / "report"
    assert {path.name for path in out.iterdir()} == {"report.html", "summary.md", "runs.csv", "methods.csv"}
    assert [part for part in FIGURES if f'id="{part}"' in (out / "report.html").read_text()] == ["length_and_cost"]
    assert "left out: Gap of teacher and student, and the teacher's entropy (Figure 1c), needs srpo/" in printed
    assert "3 of 3 steps have no timing_s/step" in printed
    assert "no validation was logged" in printed


def test_the_summary_and_the_tables_agree(page):
    folder = page.parent
    summary = (folder / "summary.md").read_text()
    assert "2 of 2 runs: peaked and fell" in summary.split("## Runs")[0]
    assert "| SRPO | 2 |" in summary
    assert (folder / "methods.csv").read_text().count("\n") == len(METHODS) + 2
