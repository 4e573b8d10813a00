"""The documentation: generated parts up to date, links alive, nothing forgotten."""
from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_generated_parts_are_up_to_date():
    run = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True,
                         check=False)
    assert run.returncode == 0, f"run `make docs`:\n{run.stdout}{run.stderr}"


@pytest.fixture
def generate(tmp_path, monkeypatch) -> ModuleType:
    """docs/generate.py, for which tmp_path is the folder of the reports."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


ENVIRONMENT = {"cpu": "some CPU", "cores": 2, "cpu_instructions": ["avx2"], "git_commit": "0123456789ab",
               "load_average_1min": 0.5}


def group(found: int, objects: int, chamfer_mm: float = 2.0) -> dict[str, Any]:
    """As frames.group_report."""
    figures = ("accuracy_mm", "completeness_mm", "chamfer_mm_median", "f_score_5mm", "f_score_10mm", "volume_iou",
               "add_s_accepted", "icp_rotation_deg", "box_iou")
    mean = {"chamfer_mm": chamfer_mm} | dict.fromkeys(figures, 0.5) if found else None
    return {"objects": objects, "found": found, "mean": mean}


def test_a_group_of_which_nothing_was_rebuilt_keeps_its_row(generate, tmp_path):
    from sam3d_ros.evaluation import shape_report

    summary = {"all": group(3, 4), "solid": group(3, 3), "thin-walled": group(0, 1), "sound": group(3, 4)}
    (tmp_path / "frames.json").write_text(json.dumps({
        "environment": ENVIRONMENT, "engine": "openvino int8", "methods": {"sam3d": summary}}))
    assert "| sam3d, thin-walled only | 0 of 1 |  |  |  |  |\n" in generate.accuracy()
    assert "| sam3d, thin-walled only | 0 of 1 |" in shape_report.methods({"sam3d": summary})
    by_object = shape_report.by_object({"easy": {"by_object": {"cup": summary["thin-walled"], "can": summary["all"]}}})
    assert "| cup | 0 of 1 |" in by_object and "| can | 3 of 4 | 2.00 |" in by_object


def test_what_was_not_measured_is_said(generate, tmp_path):
    """A report of another section than core."""
    (tmp_path / "shape.json").write_text(json.dumps({"environment": ENVIRONMENT, "sections": {"noise": {}}}))
    (tmp_path / "operations.json").write_text(json.dumps({"models": {"small": {"weights": 1, "operations": 1}}}))
    (tmp_path / "frames.json").write_text(json.dumps({"methods": {"sam3d": {"all": group(3, 4)}}}))
    for part in ("shape_setting", "shape_summary", "shape_by_object", "shape_by_visibility", "shape_core"):
        assert generate.PARTS[part]() == generate.NOT_MEASURED
    assert "| set | noise |" in generate.PARTS["shape_noise"]()
    assert "|  /  /  |  /  /  | 2.00 / 0.50 / 0.50 |" in generate.shipped_models()


def test_figures_of_another_model_are_not_shown(generate, tmp_path):
    (tmp_path / "operations.json").write_text(json.dumps({"models": {"small": {"weights": 1, "operations": 1}}}))
    summary = {"sam3d": {"all": group(3, 4)}}
    (tmp_path / "frames.json").write_text(json.dumps({"methods": summary}))
    core = {"easy": {"methods": summary}, "clutter": {"methods": summary}}
    for named, row in (({}, 3), ({"model": "small"}, 3), ({"model": "base"}, 0)):
        (tmp_path / "shape.json").write_text(json.dumps({"sections": {"core": core}} | named))
        assert generate.shipped_models().count("2.00 / 0.50 / 0.50") == row


def test_times_bear_the_name_of_the_engine_that_auto_chose(generate, tmp_path):
    one = {"objects": {"1": {"ms": {"p50": 54.0, "p95": 58.0}}}}
    (tmp_path / "bytes_to_mesh.json").write_text(json.dumps({
        "environment": ENVIRONMENT, "image": "640x480", "engines": {
            "auto": one | {"engine": "openvino int8"}, "torch": one, "tensorrt": {"fault": "no NVIDIA driver"}}}))
    table = generate.bytes_to_mesh()
    assert "| openvino int8 | 1 | 54 | 58 |\n| torch | 1 | 54 | 58 |\n" in table and "auto" not in table


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
