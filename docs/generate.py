"""Rewrites the generated parts of README.md and docs/: what the code and the benchmark results already say.

    python docs/generate.py            rewrite
    python docs/generate.py --check    say what is out of date; exit status 1 if anything is

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a function of PARTS.
"""
from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NOT_MEASURED = "Not measured yet.\n"
Report = dict[str, Any]         # of a benchmark
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def of(result: str, section: str = "") -> Callable[[Callable[[Report], str]], Callable[[], str]]:
    """For a part that is made from benchmarks/results/<result>.json, which the decorated function is given; section: of
    it, without which there is nothing to show."""
    def decorate(write: Callable[[Report], str]) -> Callable[[], str]:
        @wraps(write)
        def part() -> str:
            report = read_result(result)
            missing = report is None or section and section not in report["sections"]
            return NOT_MEASURED if missing else write(report)
        return part
    return decorate


def parameters() -> str:
    """The node's parameters."""
    from sam3d_ros.ros.parameters import markdown_table

    return markdown_table().replace("<", "&lt;")


def segmenter_parameters() -> str:
    """Parameters of tabletop_segmenter."""
    from dataclasses import asdict

    from sam3d_ros.nodes.tabletop_segmenter import PARAMETERS
    from sam3d_ros.perception.tabletop import TabletopConfig

    defaults = asdict(TabletopConfig())
    return table(("parameter", "default", "range", "meaning"), [
        (f"`{name}`", f"`{defaults[name]}`", f"{low} to {high}", meaning)
        for name, (meaning, low, high) in PARAMETERS.items()])


def camera_parameters() -> str:
    """Parameters of simulated_camera."""
    from dataclasses import fields

    from sam3d_ros.nodes.simulated_camera import CameraSettings

    rows = []
    for setting in fields(CameraSettings):
        about = setting.metadata
        allowed = ", ".join(about["choices"]) if about["low"] is None else f"{about['low']} to {about['high']}"
        default = str(setting.default).lower() if isinstance(setting.default, bool) else setting.default
        rows.append((f"`{setting.name}`", f"`{default}`", allowed, about["description"]))
    return table(("parameter", "default", "range", "meaning"), rows)


def faults() -> str:
    """Every named fault with its advice."""
    from sam3d_ros.perception.faults import FaultCode

    return table(("message", "what to do"), [(f"`{code.name}`", code.advice) for code in FaultCode])


def message_definitions() -> str:
    """The package's own messages and its action, as they are."""
    files = [*sorted(ROOT.glob("msg/*.msg")), *sorted(ROOT.glob("action/*.action"))]
    return "\n".join(f"`sam3d_ros/{file.parent.name}/{file.stem}`\n\n```\n{file.read_text().strip()}\n```\n"
                     for file in files)


@of("frames")
def accuracy(report: Report) -> str:
    """Errors on real frames."""
    product = next(iter(report["methods"]))
    rows = []
    for method, summary in report["methods"].items():
        # Thin walls have a low vIoU whatever the surface's error: they are shown apart, too.
        groups = ("all", "solid", "thin-walled") if method == product else ("all",)
        rows += [accuracy_row(method if group == "all" else f"{method}, {group} only", summary[group])
                 for group in groups if summary[group]["objects"]]
    return measured_with(report) + table(("method", "objects rebuilt", "CD mm", "F@5 mm", "F@10 mm", "vIoU"), rows)


def accuracy_row(name: str, group: Report) -> tuple[str, ...]:
    """How many objects of a group were rebuilt, and means over these."""
    from sam3d_ros.evaluation.shape_report import rebuilt

    means = (f"{group['mean'][figure]:.2f}" if group["mean"] else ""
             for figure in ("chamfer_mm", "f_score_5mm", "f_score_10mm", "volume_iou"))
    return (name, rebuilt(group), *means)


@of("frames")
def real_frames(report: Report) -> str:
    """Every figure on real frames."""
    from sam3d_ros.evaluation import shape_report

    return measured_with(report) + "\n".join([shape_report.methods(report["methods"]), shape_report.protocol(
        {"real": {name: method["sam3d_protocol"] for name, method in report["methods"].items()}})])


@of("shape", "core")
def shape_setting(report: Report) -> str:
    """What benchmarks/results/shape.json was measured on."""
    environment, core = report["environment"], report["sections"]["core"]
    sizes = "; ".join(f"{name}: {figures['methods'][next(iter(figures['methods']))]['all']['objects']} objects in "
                      f"{figures['frames']} scenes" for name, figures in core.items())
    return (f"Model `{report['model']}` (sha256 {report['model_sha256'][:12]}), {report['engine']}, on "
            f"{processor(environment)}; seed {report['seed']}; {sizes}.\n")


@of("shape", "core")
def shape_summary(report: Report) -> str:
    """The product and two baselines on the rendered scenes."""
    return measured_with(report) + table(("set", "method", "objects rebuilt", "CD mm", "F@5 mm", "F@10 mm", "vIoU"), [
        (scene_set, *accuracy_row(method, summary["all"]))
        for scene_set, figures in report["sections"]["core"].items()
        for method, summary in figures["methods"].items() if method in ("sam3d", "convex hull", "extruded hull")])


@of("shape", "core")
def shape_by_object(report: Report) -> str:
    """The product by class of object."""
    from sam3d_ros.evaluation import shape_report

    return shape_report.by_object(report["sections"]["core"])


@of("shape", "core")
def shape_by_visibility(report: Report) -> str:
    """The product by how much of the object is seen."""
    from sam3d_ros.evaluation import shape_report

    return shape_report.by_visibility(report["sections"]["core"])


def shape_section(name: str) -> str:
    """The table of a section of benchmarks/results/shape.json."""
    from sam3d_ros.evaluation import shape_report

    return of("shape", name)(lambda report: shape_report.section_table(name, report["sections"][name]))()


def shape_pictures() -> str:
    """The pictures that `sam3d bench shape --pictures docs/images/accuracy` has drawn."""
    files = sorted((ROOT / "docs" / "images" / "accuracy").glob("*.png"))
    lines = (f"![{file.stem.replace('_', ', ')}](images/accuracy/{file.name})\n" for file in files)
    return "\n".join(lines) or NOT_MEASURED


def published() -> str:
    """Published figures of others."""
    from sam3d_ros.evaluation.references import REFERENCES

    return table(("method", "figure", "on"), [(r["name"], r["figure"], r["on"]) for r in REFERENCES])


def cores(environment: Report) -> str:
    """The processor, and how much of it was used."""
    return f"{environment['cpu']}, {environment['cores']} {'core' if environment['cores'] == 1 else 'cores'}"


def processor(environment: Report) -> str:
    """What a report was measured on, and at which commit."""
    return (f"{cores(environment)} ({', '.join(environment['cpu_instructions'])}), at commit "
            f"{environment['git_commit']}")


def measured_with(report: Report) -> str:
    """Engine, processor and commit of a report, as a line above its table."""
    return f"Measured with {report['engine']} on {processor(report['environment'])}:\n\n"


def conditions(environment: Report) -> str:
    """Processor, load and commit of a run whose figures depend on how busy the machine is."""
    return (f"{cores(environment)}, load {environment['load_average_1min']:g} at the start, at commit "
            f"{environment['git_commit']}")


def speed() -> str:
    """Time from the image's stamp to the result in another process, on each kind of processor it was measured on."""
    return "\n".join(speed_of(report) for name in ("latency", "latency_avx2") if (report := read_result(name)))


def speed_of(report: Report) -> str:
    """The same on one processor."""
    rows = []
    for objects, runs in report["objects"].items():
        for mode, run in runs.items():
            latency = run["latency_ms"]
            rows.append((objects, mode, f"{run['rate_hz']:g} Hz", f"{latency['p50']:.0f}", f"{latency['p95']:.0f}",
                         f"{run['results_per_second']:.1f}"))
    return (f"From the image's stamp ({report['image']}) to the result received in another process, new meshes and "
            f"poses of known objects; {report['engine']}, {processor(report['environment'])}:\n\n"
            + table(("objects", "result", "camera", "median ms", "95th percentile ms", "results per second"), rows))


def bytes_to_mesh() -> str:
    """Time of the pipeline alone on each kind of processor that it was measured on."""
    parts = []
    for name in ("bytes_to_mesh", "bytes_to_mesh_avx2"):
        report = read_result(name)
        if report is None:
            continue
        rows = [(result.get("engine", asked_for), objects, f"{run['ms']['p50']:.0f}", f"{run['ms']['p95']:.0f}")
                for asked_for, result in report["engines"].items()
                for objects, run in result.get("objects", {}).items()]
        parts.append(f"From image bytes ({report['image']}) to mesh bytes in one process; "
                     f"{processor(report['environment'])}:\n\n"
                     + table(("engine", "objects", "median ms", "95th percentile ms"), rows))
    return "\n".join(parts)


def training_run() -> str:
    """How the shipped models were trained, from benchmarks/results/training_*.json."""
    # The samples of the students before are in the reports that these replaced, and in the history of this repository.
    return "\n".join(training_of(name, before) for name, before in {
        "base": "on top of the 71,600 of the two students before it",
        "small": "on top of the 321,440 of the five students before it, the first of which began as the imitation of "
                 "`base`"}.items())


def training_of(name: str, before: str) -> str:
    """How one model was trained."""
    report = read_result(f"training_{name}")
    if report is None:
        return ""
    meshes, environment, last = report["meshes"], report["environment"], report["log"][-1]
    return (f"`{name}`: {meshes['train split']} of these meshes were used, beside {meshes['procedural']} procedural "
            f"ones. The network saw {report['samples']:,}\nrendered samples in {report['minutes']:g} minutes on "
            f"{environment['cores']} cores ({environment['cpu']}), {before};\noverlap with "
            f"spoiled rendered objects of the dev split at the end {last['dev_iou']:.2f} "
            f"([log](../benchmarks/results/training_{name}.json)).\n")


@of("operations")
def shipped_models(operations: Report) -> str:
    """The models side by side: operations.json, and shape and frames of each."""
    rows = []
    for name, cost in operations["models"].items():
        shape, frames = result_of_model("shape", name), result_of_model("frames", name)
        sets = {**shape["sections"].get("core", {}), "real": frames} if shape and frames else {}
        figures = [(f"`{name}`", f"{cost['weights'] / 1e6:.1f} MB", f"{cost['operations'] / 1e9:.1f} G")]
        for key in ("easy", "clutter", "real"):
            methods = sets[key]["methods"] if key in sets else {"": None}
            group = next(iter(methods.values()))
            cells = accuracy_row(key, group["all"]) if group else ("",) * 6
            figures.append((" / ".join(cells[index] for index in (2, 3, 5)),))
        rows.append(sum(figures, ()))
    return table(("model", "weights", "operations", "easy: CD mm / F@5 / vIoU", "clutter", "real frames"), rows)


@of("registration")
def registration(report: Report) -> str:
    """Ways to register a mesh."""
    rows = [(name, *(f"{figures[key]['p50']:.2f}" for key in ("cpu_ms", "mm", "degrees")))
            for name, figures in report["methods"].items()]
    return (f"One registration, 500 readings, medians over {report['objects']} objects and {report['starts']} starts "
            f"each ({conditions(report['environment'])}; CPU time of one thread; errors against the pose that the mesh "
            "was made at):\n\n" + table(("method", "CPU ms", "mm", "degrees"), rows))


@of("track")
def tracking(report: Report) -> str:
    """Tracking in simulated scenes."""
    rows = []
    for run in report["runs"]:
        shares = [each["seen_share"] for each in run["each"] if each.get("seen_share") is not None]
        rows.append((str(run["seed"]), "given" if run["camera_pose_given"] else "found", str(run["images"]),
                     f"{min(shares):.0%}" if shares else "", str(run["id_switches"]),
                     f"{run['mm']['p50']:.1f} / {run['mm']['p95']:.1f}",
                     f"{run['degrees']['p50']:.1f} / {run['degrees']['p95']:.1f}",
                     f"{run['update_cpu_ms']['p50']:.1f}"))
    return (f"{report['objects']} objects, {report['seconds']:g} s ({conditions(report['environment'])}; median / 95th "
            "percentile over all objects and images):\n\n"
            + table(("scene", "camera pose", "images", "seen", "id switches", "mm", "degrees", "CPU ms per image"),
                    rows))


@of("slow_masks")
def slow_masks(report: Report) -> str:
    """Rate and age of poses with slow masks."""
    return (f"{report['objects']} objects, a camera at {report['camera_rate_hz']:g} Hz, masks at "
            f"{report['mask_rate_hz']:g} Hz and {report['mask_lag_ms']:g} ms late "
            f"({conditions(report['environment'])}):\n\n"
            + table(("poses", "per second", "median age ms", "95th percentile ms"), [
                (name, f"{run['results_per_second']:.1f}", f"{run['age_ms']['p50']:.0f}", f"{run['age_ms']['p95']:.0f}")
                for name, run in report["runs"].items()]))


@of("rough_soak")
def rough_soak(report: Report) -> str:
    """The long run with troubles."""
    # Of an older report: a bar that no run could have missed.
    bars = {name: bar for name, bar in report["bars"].items() if name != "stale_poses_shown_as_fresh"}
    actions = ", ".join(f"{count} {name}" for name, count in report["actions"].items())
    return (f"{report['minutes']:g} minutes, {report['objects']} objects, {report['results']} results; {actions} "
            f"({conditions(report['environment'])}):\n\n" + table(("bar", "measured", "limit"), [
                (name.replace("_", " "), f"{bar['value']:g}", f"{bar['limit']:g}")
                for name, bar in bars.items()]))


# Device -> dense float16 operations per second, bytes per second of memory (NVIDIA's data sheets; Orin Nano: Super).
DEVICES = {"Orin Nano 8 GB": (17e12, 102e9), "AGX Orin 64 GB": (43e12, 205e9), "Thor": (259e12, 273e9),
           "RTX 4060": (60e12, 272e9)}


@of("operations")
def gpu_sizing(report: Report) -> str:
    """Least time of the network alone on several GPUs."""
    rows = []
    for name, cost in report["models"].items():
        moved = cost["weights"] + cost["activations"]
        limits = [1e3 * max(cost["operations"] / rate, moved / bandwidth) for rate, bandwidth in DEVICES.values()]
        rows.append((name, f"{cost['operations'] / 1e9:.1f}", f"{moved / 1e6:.0f}", *(f"{ms:.2f}" for ms in limits)))
    return table(("model", "10^9 operations", "MB", *(f"{device}, ms" for device in DEVICES)), rows)


@of("physics")
def physics(report: Report) -> str:
    """Rebuilt objects in clutter before and after they are settled."""
    rows = []
    for kind, figures in report["kinds"].items():
        changes = [f"{row['before']:.2f} → {row['after']:.2f} ({100 * row['change']:+.0f} %)"
                   for row in (figures[name] for name in ("penetration_mm", "gap_mm", "chamfer_mm"))]
        scenes = report["scenes"] * (len(report["kinds"]) - 1 if kind == "all" else 1)
        rows.append((kind, f"{figures['objects']} in {scenes} scenes", *changes, str(figures["refused"]),
                     f"{figures['settle_ms_median']:.1f}"))
    return measured_with(report) + table(
        ("scenes", "objects", "penetration mm", "gap mm", "CD mm", "refused", "settle ms"), rows)


@of("grasp")
def grasping(report: Report) -> str:
    """Grasps in simulation."""
    rows = []
    for scenes, methods in report["scenes"].items():
        for method, figures in methods.items():
            low, high = (100 * bound for bound in figures["success_rate_95"])
            rows.append((scenes, method, str(figures["rounds"]), str(figures["attempts"]),
                         f"{100 * figures['success_rate']:.1f} ({low:.0f} to {high:.0f})",
                         f"{100 * figures['declutter_rate']:.1f}"))
    return measured_with(report) + table(
        ("scenes, order", "meshes", "rounds", "grasps", "success % (95 % interval)", "cleared %"), rows)


SHAPE_SECTIONS = ("core", "oracle", "noise", "protocol", "robustness", "no_depth", "visibility", "views", "colour",
                  "uncertainty", "ablation")
PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part for part in (
        parameters, segmenter_parameters, camera_parameters, faults, message_definitions, accuracy, speed,
        bytes_to_mesh, training_run, shipped_models, real_frames, shape_setting,
        shape_summary, shape_by_object, shape_by_visibility, shape_pictures, published, registration,
        tracking, slow_masks, rough_soak, gpu_sizing, physics, grasping)
} | {f"shape_{name}": partial(shape_section, name) for name in SHAPE_SECTIONS}


def read_result(name: str) -> Report | None:
    """A benchmark's report; None where it has not been measured, or only by a quick run."""
    file = RESULTS / f"{name}.json"
    report = json.loads(file.read_text()) if file.exists() else {"quick": True}
    return None if report.get("quick") else report


def result_of_model(name: str, model: str) -> Report | None:
    """A benchmark's report of one of the shipped models; None also where it is of another one, which old
    reports do not tell."""
    from sam3d_ros.runtime.engine import DEFAULT_MODEL

    report = read_result(name if model == DEFAULT_MODEL else f"{name}_{model}")
    return report if report and report.get("model", model) == model else None


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def documents() -> Iterator[Path]:
    """All pages that may hold generated parts."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").glob("*.md"))


def regenerated(text: str) -> str:
    """`text` with all its generated parts made anew."""
    return PART.sub(lambda match: match[1] + PARTS[match[2]]() + match[3], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if something is out of date")
    check = parser.parse_args().check
    stale = False
    for file in documents():
        before = file.read_text()
        after = regenerated(before)
        if after == before:
            continue
        stale = True
        name = str(file.relative_to(ROOT))
        if check:
            sys.stdout.writelines(difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, name))
        else:
            file.write_text(after)
            print(f"rewritten: {name}")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
