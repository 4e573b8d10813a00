"""The sections of `sam3d bench shape` as Markdown tables, for the terminal and for the documentation."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Section = Mapping[str, Any]

ERROR_COLUMNS = ("rebuilt", "CD mm", "CD median", "acc. mm", "compl. mm", "F@5 mm", "F@10 mm", "vIoU", "ADD-S < 0.1",
                 "ICP-Rot °", "box IoU")
KINDS = {"all": "", "sound": ", without chain and lid", "solid": ", solid only", "thin-walled": ", thin-walled only"}
FEW_COLUMNS = ("rebuilt", "CD mm", "F@5 mm", "vIoU")


def text(sections: Mapping[str, Section]) -> str:
    """All tables below their titles."""
    return "\n".join(f"## {name}\n\n{section_table(name, section)}" for name, section in sections.items())


def section_table(name: str, section: Section) -> str:
    """The table of one section."""
    return TABLES[name](section)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ("---",) * len(head), *rows))


def rebuilt(group: Section) -> str:
    """How many objects of a group (frames.group_report) were rebuilt, of how many."""
    return f"{group['found']} of {group['objects']}"


def error_cells(group: Section) -> tuple[str, ...]:
    """Cells of ERROR_COLUMNS for a group of objects."""
    m = group["mean"]
    if m is None:
        return (rebuilt(group), *("" for _ in ERROR_COLUMNS[1:]))
    return (rebuilt(group), f"{m['chamfer_mm']:.2f}", f"{m['chamfer_mm_median']:.2f}", f"{m['accuracy_mm']:.2f}",
            f"{m['completeness_mm']:.2f}",
            f"{m['f_score_5mm']:.3f}", f"{m['f_score_10mm']:.3f}", f"{m['volume_iou']:.3f}",
            f"{m['add_s_accepted']:.3f}", f"{m['icp_rotation_deg']:.1f}", f"{m['box_iou']:.3f}")


def few_cells(group: Section | None) -> tuple[str, ...]:
    """Cells of FEW_COLUMNS; empty without a group."""
    if group is None or group["mean"] is None:
        return ("" if group is None else rebuilt(group), "", "", "")
    m = group["mean"]
    return rebuilt(group), f"{m['chamfer_mm']:.2f}", f"{m['f_score_5mm']:.3f}", f"{m['volume_iou']:.3f}"


def core(section: Section) -> str:
    """Every method on both sets."""
    return markdown_table(("set", "method", *ERROR_COLUMNS), [
        (scene_set, *row) for scene_set, figures in section.items() for row in method_rows(figures["methods"])])


def methods(summaries: Section) -> str:
    """Every method on one set (frames.report)."""
    return markdown_table(("method", *ERROR_COLUMNS), method_rows(summaries))


def method_rows(summaries: Section) -> list[tuple[str, ...]]:
    """Rows for every method, over all and over sound objects (if these are fewer); for the product, the first method,
    also by kind of object.
    """
    rows = []
    for position, (method, summary) in enumerate(summaries.items()):
        kinds = ["all", "sound"] if summary["sound"]["objects"] < summary["all"]["objects"] else ["all"]
        kinds += ["solid", "thin-walled"] if position == 0 else []
        rows += [(f"{method}{KINDS[kind]}", *error_cells(summary[kind])) for kind in kinds if summary[kind]["objects"]]
    return rows


def by_object(section: Section) -> str:
    """The product by class of object."""
    names = sorted({name for figures in section.values() for name in figures["by_object"]})
    head = [f"{scene_set}: {column}" for scene_set in section for column in FEW_COLUMNS]
    return markdown_table(("object", *head), [
        (name, *(cell for figures in section.values() for cell in few_cells(figures["by_object"].get(name))))
        for name in names])


def by_visibility(section: Section) -> str:
    """The product by how much of the object's outline is seen."""
    return markdown_table(("set", "seen", *FEW_COLUMNS), [
        (scene_set, step, *few_cells(group))
        for scene_set, figures in section.items() for step, group in figures["by_visibility"].items()])


def oracle(section: Section) -> str:
    """What could be reached at best, on both sets."""
    return markdown_table(("set", "method", *ERROR_COLUMNS), [
        (scene_set, *row) for scene_set, methods_of in section.items() for row in method_rows(methods_of)])


def noise(section: Section) -> str:
    """Other levels of sensor noise."""
    return markdown_table(("set", "noise", *ERROR_COLUMNS), [
        (scene_set, level, *error_cells(group))
        for scene_set, levels in section.items() for level, group in levels.items()])


def protocol(section: Section) -> str:
    """SAM 3D's own protocol."""
    rows = [(scene_set, method, str(m["objects"]), f"{m['f1_001']:.3f}", f"{m['volume_iou']:.3f}",
             f"{m['chamfer']:.4f}", f"{m['emd']:.4f}")
            for scene_set, methods in section.items() for method, m in methods.items() if m]
    return markdown_table(("set", "method", "objects", "F1@0.01", "vIoU", "CD", "EMD"), rows)


def ratios(section: Section) -> str:
    """Chamfer distance before and after a change of the input."""
    head = ("input", "rebuilt", "CD mm as it is", "CD mm changed", "change", "without chain and lid", "median object")
    return markdown_table(head, [
        (name, rebuilt(r), cell(r["before_mm"], ".2f"), cell(r["after_mm"], ".2f"),
         *("" if r[key] is None else f"{r[key] - 1:+.0%}" for key in ("ratio", "sound_ratio", "median_ratio")))
        for name, r in section.items()])


def no_depth(section: Section) -> str:
    """Without depth."""
    unknown, plane = section["unknown_scale"], section["support_plane"]
    head = ("scale from", "rebuilt", "vIoU, similarity aligned", "size error, median", "CD mm", "vIoU")
    return markdown_table(head, [
        ("depth (for comparison)", "", cell(section["with_depth"]["aligned_volume_iou"], ".3f"), "", "", ""),
        ("the model", rebuilt(unknown), cell(unknown["aligned_volume_iou"], ".3f"), "",
         *few_cells(unknown)[1::2]),
        ("the support plane", rebuilt(plane), "", cell(plane["size_error_median"], ".1%"),
         *few_cells(plane)[1::2])])


def cell(value: float | None, form: str) -> str:
    """A number, or an empty cell for None."""
    return "" if value is None else format(value, form)


def visibility(section: Section) -> str:
    """Objects seen by 25 to 50 %."""
    return markdown_table(("method", *ERROR_COLUMNS), [(name, *error_cells(group)) for name, group in section.items()])


def colour(section: Section) -> str:
    """Errors on unseen surface."""
    return markdown_table(
        ("set", "objects", "Lab error", "of mean colour", "below it", "of mean true colour", "relit: Lab error",
         "of mean colour", "below it"),
        [(scene_set, str(c["objects"]), f"{c['unseen']:.1f}", f"{c['mean_colour']:.1f}",
          f"{c['below_mean_colour']:.0%}", f"{c['mean_true_colour']:.1f}",
          f"{c['unseen_relit']:.1f}", f"{c['mean_colour_relit']:.1f}",
          f"{c['below_mean_colour_relit']:.0%}")
         for scene_set, c in section.items()])


def uncertainty(section: Section) -> str:
    """Sharpness, then the reliability curve."""
    summary = markdown_table(
        ("set", "error of the surest half / of the other half", "the same within an object, median",
         "errors below 1 sigma", "below 2 sigma"),
        [(scene_set, f"{u['half_ratio']:.2f}", f"{u['half_ratio_within_objects']:.2f}", f"{u['within_1_sigma']:.0%}",
          f"{u['within_2_sigma']:.0%}") for scene_set, u in section.items()])
    bins = max((len(u["curve"]) for u in section.values()), default=0)
    curve = markdown_table(
        ("vertices, from the surest", *(f"{k + 1} of {bins}" for k in range(bins))),
        [(f"{scene_set}, {kind} mm", *(f"{point[f'{kind}_mm']:.2f}" for point in u["curve"]))
         for scene_set, u in section.items() for kind in ("expected", "observed")])
    return f"{summary}\n{curve}"


TABLES: dict[str, Callable[[Section], str]] = {
    "core": core, "oracle": oracle, "noise": noise, "protocol": protocol, "robustness": ratios, "no_depth": no_depth,
    "visibility": visibility, "views": ratios, "colour": colour, "uncertainty": uncertainty, "ablation": ratios}
