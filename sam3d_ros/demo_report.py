"""What the demo leaves behind: errors to the truth, latency, and pictures."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from .evaluation.metrics import compare
from .perception.folder import write_ply
from .perception.frame import Intrinsics
from .ros.debug_image import label_colour
from .synth.raycaster import Body, Lamp, Raycaster, vertex_paint
from .synth.tabletop import camera_intrinsics, framing_pose

MATCH_DISTANCE = 0.10             # metres between the centroids of a rebuilt object and its true one, at most
PANEL = (800, 600)                # pixels, width and height of each picture in the overview
SUPERSAMPLING = 2
TITLE_HEIGHT, GAP = 44, 8         # pixels
PAPER, INK = (250, 250, 248), (40, 42, 46)
STUDIO = 214                      # grey of the table under meshes


@dataclass(frozen=True)
class PosedMesh:
    """A mesh that stands in the world.

    name: kind or class; vertices: (N, 3) metres, object frame; triangles: (M, 3); rgb: (N, 3) uint8;
    world_from_object: (4, 4)
    """

    name: str
    vertices: np.ndarray
    triangles: np.ndarray
    rgb: np.ndarray
    world_from_object: np.ndarray

    @property
    def in_world(self) -> trimesh.Trimesh:
        """The mesh in world coordinates."""
        vertices = trimesh.transform_points(self.vertices, self.world_from_object)
        return trimesh.Trimesh(vertices, self.triangles, process=False)


@dataclass(frozen=True)
class RebuiltMesh(PosedMesh):
    """A result.

    size: (3,) metres along the object frame's axes; visible_fraction: share of its surface that the image shows
    """

    size: np.ndarray
    visible_fraction: float


@dataclass(frozen=True)
class Recording:
    """What was received.

    colour: (H, W, 3) uint8 and labels: (H, W), one image; rebuilt: the result of this image; truth: what stands there,
    the object with label k at index k - 1; world_from_camera: (4, 4) at the image's stamp
    latencies_ms: (R,) image stamp to result received; arrivals: (R,) seconds, when each result came
    """

    colour: np.ndarray
    labels: np.ndarray
    intrinsics: Intrinsics
    world_from_camera: np.ndarray
    truth: tuple[PosedMesh, ...]
    rebuilt: tuple[RebuiltMesh, ...]
    latencies_ms: np.ndarray
    arrivals: np.ndarray


@dataclass(frozen=True)
class ObjectErrors:
    """One true object and how its rebuilt mesh differs; None where it was not rebuilt. Unaligned, metric.

    chamfer_mm: mean of the two directed mean distances between the surfaces
    f_score_10mm: harmonic mean of the shares of both surfaces that are nearer than 10 mm to the other
    position_mm: between the centroids of the two solids
    size_mm: largest difference of the extents along the rebuilt object's axes
    size_cm: true extents along the true object's own axes
    """

    label: int
    name: str
    size_cm: tuple[float, float, float]
    chamfer_mm: float | None = None
    f_score_10mm: float | None = None
    position_mm: float | None = None
    size_mm: float | None = None
    visible_fraction: float | None = None


@dataclass(frozen=True)
class Timing:
    """Over all results received: latency from the image's stamp (ms), results per second, and their number."""

    latency_p50_ms: float
    latency_p95_ms: float
    results_per_second: float
    results: int


EXPLANATION = """\
CD: mean of the two directed mean distances between the rebuilt and the true surface, unaligned.
Position: between the centroids. Size error: the largest along the rebuilt object's axes.
Seen: share of the surface that the camera sees."""


# Figures

def match(truth: Sequence[PosedMesh], rebuilt: Sequence[PosedMesh]) -> dict[int, int]:
    """Index in truth -> index in rebuilt: the pairing of least total distance, pairs within MATCH_DISTANCE only."""
    if not truth or not rebuilt:
        return {}
    centres, rebuilt_centres = (np.array([mesh.in_world.center_mass for mesh in meshes]) for meshes in (truth, rebuilt))
    distances = np.linalg.norm(centres[:, None] - rebuilt_centres, axis=2)
    pairs = zip(*linear_sum_assignment(np.minimum(distances, 2 * MATCH_DISTANCE)), strict=True)
    return {int(true): int(found) for true, found in pairs if distances[true, found] < MATCH_DISTANCE}


def object_errors(recording: Recording) -> list[ObjectErrors]:
    """Errors of every true object, in the order of its label."""
    pairs = match(recording.truth, recording.rebuilt)
    return [_errors(index + 1, true, recording.rebuilt[pairs[index]] if index in pairs else None)
            for index, true in enumerate(recording.truth)]


def _errors(label: int, true: PosedMesh, rebuilt: RebuiltMesh | None) -> ObjectErrors:
    size_cm = tuple(round(100 * float(extent), 1) for extent in np.ptp(true.vertices, axis=0))
    if rebuilt is None:
        return ObjectErrors(label, true.name, size_cm)
    true_mesh, mesh = true.in_world, rebuilt.in_world
    shape = compare(mesh, true_mesh)
    true_size = np.ptp(true_mesh.vertices @ rebuilt.world_from_object[:3, :3], axis=0)
    return ObjectErrors(label, true.name, size_cm, shape.chamfer_mm, shape.f_score_10mm,
                        1e3 * float(np.linalg.norm(mesh.center_mass - true_mesh.center_mass)),
                        1e3 * float(np.abs(rebuilt.size - true_size).max()), rebuilt.visible_fraction)


def timing(recording: Recording) -> Timing:
    """Latency and rate of the results."""
    p50, p95 = np.percentile(recording.latencies_ms, [50, 95])
    span = recording.arrivals[-1] - recording.arrivals[0]
    rate = (len(recording.arrivals) - 1) / span if span > 0 else 0.0
    return Timing(float(p50), float(p95), float(rate), len(recording.arrivals))


def markdown_table(errors: Sequence[ObjectErrors], times: Timing) -> str:
    """The figures for a person."""
    rows = [("object", "size (cm)", "CD (mm)", "F@10 mm", "position (mm)", "size error (mm)", "seen")]
    for e in errors:
        size = " x ".join(f"{extent:.1f}" for extent in e.size_cm)
        if e.chamfer_mm is None:
            rows.append((e.name, size, "not rebuilt", "", "", "", ""))
        else:
            rows.append((e.name, size, f"{e.chamfer_mm:.1f}", f"{e.f_score_10mm:.2f}", f"{e.position_mm:.1f}",
                         f"{e.size_mm:.1f}", f"{100 * e.visible_fraction:.0f} %"))
    rebuilt = [e for e in errors if e.chamfer_mm is not None]
    if rebuilt:
        rows.append(("mean", "", *(f"{np.mean([getattr(e, name) for e in rebuilt]):.{digits}f}" for name, digits in
                                   (("chamfer_mm", 1), ("f_score_10mm", 2), ("position_mm", 1), ("size_mm", 1))), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
             for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    latency = f"p50 {times.latency_p50_ms:.0f} ms, p95 {times.latency_p95_ms:.0f} ms"
    rate = f"{times.results_per_second:.1f} results per second ({times.results} in all)"
    summary = f"Latency from image stamp to result received: {latency}; {rate}."
    return "\n".join([*lines, "", summary, "", EXPLANATION, ""])


# Pictures

def outlined(colour: np.ndarray, labels: np.ndarray, width: int) -> np.ndarray:
    """The image (H, W, 3) uint8 with each instance tinted and outlined inwards, `width` pixels wide."""
    result = colour.astype(np.float32)
    for label in np.unique(labels[labels > 0]):
        mask = labels == label
        rim = mask & ~ndimage.binary_erosion(mask, iterations=width)
        result[mask] = 0.9 * result[mask] + 0.1 * np.array(label_colour(int(label)), np.float32)
        result[rim] = label_colour(int(label))
    return result.astype(np.uint8)


def overview(recording: Recording, errors: Sequence[ObjectErrors]) -> Image.Image:
    """Input with masks, rebuilt meshes from the camera and from behind, and the truth from behind."""
    intrinsics = camera_intrinsics(*PANEL)
    points = np.concatenate([mesh.in_world.vertices for mesh in (*recording.truth, *recording.rebuilt)])
    axis = recording.world_from_camera[:3, 2]
    azimuth, elevation = np.arctan2(-axis[1], -axis[0]), np.arcsin(np.clip(-axis[2], -1, 1))
    behind = framing_pose(points, azimuth + np.pi, min(elevation + 0.2, 1.1), intrinsics)
    front = _scaled(recording.intrinsics, PANEL[0])

    pairs = match(recording.truth, recording.rebuilt)
    names = [e.name for e in errors]
    rebuilt_tags = {pairs[i]: (e.label, f"{e.name}  {e.chamfer_mm:.1f} mm") for i, e in enumerate(errors) if i in pairs}
    truth_tags = {i: (i + 1, name) for i, name in enumerate(names)}
    picture = outlined(recording.colour, recording.labels, 2)
    found = [e.chamfer_mm for e in errors if e.chamfer_mm is not None]
    mean = f", mean distance to the truth {np.mean(found):.1f} mm" if found else ""
    return _grid([
        ("Input: colour, depth and masks", _tagged(
            Image.fromarray(picture).resize(PANEL, Image.Resampling.LANCZOS), recording.truth, truth_tags, front,
            recording.world_from_camera)),
        (f"Rebuilt, from the camera{mean}",
         _panel(recording.rebuilt, rebuilt_tags, front, recording.world_from_camera)),
        ("Rebuilt, from behind: what the camera cannot see",
         _panel(recording.rebuilt, rebuilt_tags, intrinsics, behind)),
        ("Truth, from behind", _panel(recording.truth, truth_tags, intrinsics, behind))])


def _scaled(intrinsics: Intrinsics, width: int) -> Intrinsics:
    """The same camera with another image width; pixel centres stay at integers."""
    k = width / intrinsics.width
    return Intrinsics(width, round(intrinsics.height * k), intrinsics.fx * k, intrinsics.fy * k,
                      (intrinsics.cx + 0.5) * k - 0.5, (intrinsics.cy + 0.5) * k - 0.5)


def _panel(meshes: Sequence[PosedMesh], tags: dict[int, tuple[int, str]], intrinsics: Intrinsics,
           world_from_camera: np.ndarray) -> Image.Image:
    """Meshes on a plain table, lit from above the camera's left shoulder, with name tags."""
    table = trimesh.creation.box([40, 40, 0.1]).apply_translation([0, 0, -0.05])
    bodies = [Body(mesh.in_world, vertex_paint(mesh.rgb), np.eye(4)) for mesh in meshes]
    plain = vertex_paint(np.full((len(table.vertices), 3), STUDIO, np.uint8))
    axis = world_from_camera[:3, 2]
    left = np.arctan2(-axis[1], -axis[0]) - 0.9
    lamp = Lamp(np.array([1.2 * np.cos(left), 1.2 * np.sin(left), 1.9]), samples=8)
    fine = _scaled(intrinsics, SUPERSAMPLING * intrinsics.width)
    view = Raycaster([*bodies, Body(table, plain, np.eye(4))], lamp).render(fine, world_from_camera)
    image = Image.fromarray(view.colour).resize((intrinsics.width, intrinsics.height), Image.Resampling.LANCZOS)
    return _tagged(image, meshes, tags, intrinsics, world_from_camera)


def _tagged(image: Image.Image, meshes: Sequence[PosedMesh], tags: dict[int, tuple[int, str]], intrinsics: Intrinsics,
            world_from_camera: np.ndarray) -> Image.Image:
    """The image with a name tag over each mesh; tags: index of the mesh -> label and text."""
    draw = ImageDraw.Draw(image, "RGBA")
    font = ImageFont.load_default(size=17)
    taken: list[tuple[float, float, float, float]] = []
    for index, (label, text) in sorted(tags.items()):
        u, v = _pixels(meshes[index].in_world.vertices, intrinsics, world_from_camera)
        width, height = draw.textlength(text, font=font) + 30, 26
        left = float(np.clip((u.min() + u.max()) / 2 - width / 2, 4, image.width - width - 4))
        top = float(np.clip(v.min() - height - 6, 4, image.height - height - 4))
        while any(left < other[2] and other[0] < left + width and top < other[3] and other[1] < top + height
                  for other in taken):
            top += 4
        taken.append((left, top, left + width, top + height))
        draw.rounded_rectangle(taken[-1], 6, fill=(255, 255, 255, 225))
        draw.ellipse((left + 8, top + 8, left + 18, top + 18), fill=label_colour(label), outline=(*INK, 160))
        draw.text((left + 24, top + height / 2), text, fill=INK, font=font, anchor="lm")
    return image


def _pixels(points: np.ndarray, intrinsics: Intrinsics, world_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows at which world points (N, 3) are seen."""
    x, y, z = trimesh.transform_points(points, np.linalg.inv(world_from_camera)).T
    return x / z * intrinsics.fx + intrinsics.cx, y / z * intrinsics.fy + intrinsics.cy


def _grid(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Two columns of titled pictures."""
    width, height = PANEL
    step_x, step_y = width + GAP, height + TITLE_HEIGHT
    sheet = Image.new("RGB", (2 * step_x + GAP, (len(panels) + 1) // 2 * step_y + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=23)
    for index, (title, picture) in enumerate(panels):
        left, top = GAP + index % 2 * step_x, index // 2 * step_y
        draw.text((left + 4, top + TITLE_HEIGHT / 2 + 2), title, fill=INK, font=font, anchor="lm")
        sheet.paste(picture, (left, top + TITLE_HEIGHT))
    return sheet


# Files

def write_report(recording: Recording, folder: Path) -> str:
    """Write input.png, overview.png, objects/*.ply, table.md and results.json; returns the table."""
    errors, times = object_errors(recording), timing(recording)
    table = markdown_table(errors, times)
    Image.fromarray(outlined(recording.colour, recording.labels, 2)).save(folder / "input.png")
    overview(recording, errors).save(folder / "overview.png", optimize=True)
    (folder / "table.md").write_text(table)
    meshes = folder / "objects"
    meshes.mkdir(exist_ok=True)
    for stale in meshes.glob("[0-9]*_*.ply"):
        stale.unlink()
    pairs = match(recording.truth, recording.rebuilt)
    camera_from_world = np.linalg.inv(recording.world_from_camera)
    entries = []
    for index, error in enumerate(errors):
        entry = asdict(error) | {"mesh": None}
        if index in pairs:
            rebuilt = recording.rebuilt[pairs[index]]
            entry["mesh"] = f"objects/{error.label}_{error.name}.ply"
            entry["pose_object_to_camera"] = (camera_from_world @ rebuilt.world_from_object).tolist()
            rgba = np.column_stack([rebuilt.rgb, np.full(len(rebuilt.rgb), 255, np.uint8)])
            write_ply(folder / entry["mesh"], rebuilt.vertices, rebuilt.triangles, rgba)
        entries.append(entry)
    (folder / "results.json").write_text(json.dumps({"objects": entries, "timing": asdict(times)}, indent=2) + "\n")
    return table
