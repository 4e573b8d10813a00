"""The documentation: generated parts up to date, links alive, nothing forgotten."""
from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_generated_parts_are_up_to_date():
    run = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True,
                         check=False)
    assert run.returncode == 0, f"run `make docs`:\n{run.stdout}{run.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", page.read_text())
    local = [link for link in links if not link.startswith(("http://", "https://"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_exist(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([\w-]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        text = ((page.parent / target) if target else page).read_text()
        headings = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
                    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
        assert anchor in headings


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in readme] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists(page):
    from sam3d_ros.cli import COMMANDS

    found = re.findall(r"```bash\n(.*?)```|`((?:sam3d|make) [^`\n]+)`", page.read_text(), re.DOTALL)
    examples = "\n".join(block or inline for block, inline in found)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?<![/\w])sam3d ([\w-]+)", examples)) <= set(COMMANDS)
    assert set(re.findall(r"^make (\w+)", examples, re.MULTILINE)) <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_use_what_exists(page):
    for example in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        code = ast.parse(example)
        code.body = [node for node in code.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(code, page.name, "exec"), {})
