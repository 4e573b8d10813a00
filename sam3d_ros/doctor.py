"""`sam3d doctor`: what is installed, what works, and what to do about each gap."""
from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict

from sam3d_ros.doctor_checks import BROKEN, GAP, OK, Check, examine

MARKS = {OK: "+", GAP: "-", BROKEN: "!"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report; the exit status is 0 if the main job, images to object meshes, can be done here."""
    checks = examine()
    obstacles = main_job_obstacles(checks)
    if args.json:
        print(json.dumps({"ready": not obstacles, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        print(table(checks), end="\n\n")
        print(f"sam3d cannot do its job here; missing or broken: {', '.join(obstacles)}" if obstacles
              else "sam3d can do its job here.")
    return 1 if obstacles else 0


def main_job_obstacles(checks: Iterable[Check]) -> list[str]:
    """Names of what is needed and not in order; one engine that works is enough."""
    checks = list(checks)
    obstacles = [check.name for check in checks if check.needed and check.state != OK]
    if not any(check.group == "engine" and check.state == OK for check in checks):
        obstacles.append("a working engine")
    return obstacles


def table(checks: Iterable[Check]) -> str:
    """The report as text: `+` is in order, `-` is absent or could be better, `!` does not work."""
    checks = list(checks)
    width = max(len(check.name) for check in checks)
    lines, group = [], None
    for check in checks:
        if check.group != group:
            group = check.group
            lines += ["", group]
        lines.append(f"  {MARKS[check.state]} {check.name:{width}}  {check.detail}")
        if check.advice and check.state != OK:
            lines.append(f"    {'':{width}}  -> {check.advice}")
    return "\n".join(lines[1:])
