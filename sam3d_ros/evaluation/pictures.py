"""Pictures of the best, the median and the worst object of each set: what the camera saw, what was made of it, the
truth, and where the result is wrong; from the camera's side and from behind.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from PIL import Image, ImageDraw, ImageFont

from sam3d_ros.evaluation.frames import Score, TrueFrame, posed_mesh
from sam3d_ros.evaluation.metrics import distances_to
from sam3d_ros.evaluation.scenes import Model, dev_models
from sam3d_ros.evaluation.shape import PRODUCT, SCENE_SETS, Bench
from sam3d_ros.perception.frame import Intrinsics
from sam3d_ros.perception.objects import ReconstructedObject
from sam3d_ros.perception.raycasting import raycasting_scene
from sam3d_ros.synth.raycaster import Body, Lamp, Raycaster, image_paint, vertex_paint
from sam3d_ros.synth.tabletop import framing_pose

PANEL = 190                     # pixels, edge of each of the panels
TITLE_HEIGHT, GAP = 20, 4
PAPER, INK, MASK = (250, 250, 248), (40, 42, 46), (255, 60, 60)
WORST_MM = 10.0                 # end of the colour scale
# Colour scale of the error: stops between 0 and WORST_MM.
SCALE = np.array([[38, 70, 140], [60, 160, 150], [240, 220, 110], [230, 110, 50], [160, 20, 40]], float)
COLOURS = 128                   # of the palette, so that the files stay small


def draw(bench: Bench, folder: Path) -> list[Path]:
    """Write <set>_best.png, <set>_median.png and <set>_worst.png, by chamfer distance, of every set with results."""
    folder.mkdir(parents=True, exist_ok=True)
    models = {model.name: model for model in dev_models(bench.data)}
    files = []
    for scene_set in SCENE_SETS:
        frames = {where.name: (where, results) for where, results in
                  zip(bench.frames(scene_set), bench.results(scene_set), strict=True)}
        found = sorted((s for s in bench.scores(scene_set) if s.method == PRODUCT and s.errors),
                       key=lambda score: score.errors.chamfer_mm)
        for rank, index in (("best", 0), ("median", len(found) // 2), ("worst", -1)) if found else ():
            score = found[index]
            where, results = frames[score.frame]
            picture = overview(where, score, results[score.true.label], models[score.true.name])
            files.append(folder / f"{scene_set}_{rank}.png")
            picture.quantize(COLOURS).save(files[-1], optimize=True)
    return files


def overview(where: TrueFrame, score: Score, item: ReconstructedObject, model: Model) -> Image.Image:
    """Panels: input, result, truth and error as the camera sees them; below, figures and the last three from behind."""
    world_from_object = where.world_from_camera @ score.true.camera_from_object
    rebuilt = posed_mesh(item).apply_transform(where.world_from_camera)
    bodies = {
        "rebuilt": Body(rebuilt, vertex_paint(item.vertex_rgba[:, :3]), np.eye(4)),
        "truth": Body(model.mesh, image_paint(model.image, model.uv), world_from_object),
        "error": Body(rebuilt, vertex_paint(error_colours(rebuilt, model.mesh, world_from_object)), np.eye(4)),
    }
    points = trimesh.transform_points(model.mesh.vertices, world_from_object)
    towards = where.world_from_camera[:3, 3] - points.mean(axis=0)
    azimuth = np.arctan2(towards[1], towards[0])
    elevation = np.arctan2(towards[2], np.linalg.norm(towards[:2]))
    canvas = Image.new("RGB", (4 * PANEL + 3 * GAP, 2 * (PANEL + TITLE_HEIGHT) + GAP), PAPER)
    write = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    for row, (side, turn) in enumerate((("", 0.0), (", from behind", np.pi))):
        for column, (name, body) in enumerate(bodies.items(), 1):
            corner = (column * (PANEL + GAP), row * (PANEL + TITLE_HEIGHT + GAP))
            title = f"error, 0 to {WORST_MM:.0f} mm" if name == "error" else name
            write.text((corner[0] + 4, corner[1] + 3), title + side, INK, font)
            canvas.paste(_portrait(body, points, azimuth + turn, elevation), (corner[0], corner[1] + TITLE_HEIGHT))
    write.text((4, 3), "input", INK, font)
    canvas.paste(_input(where, score.true.label), (0, TITLE_HEIGHT))
    errors = score.errors
    write.text((4, PANEL + TITLE_HEIGHT + GAP + 3), "\n".join([
        score.true.name, f"{score.true.visible_fraction:.0%} of its outline seen", "",
        f"CD {errors.chamfer_mm:.2f} mm", f"F@5 mm {errors.f_score_5mm:.2f}", f"vIoU {errors.volume_iou:.2f}"]),
        INK, font)
    return canvas


def error_colours(mesh: trimesh.Trimesh, true: trimesh.Trimesh, world_from_object: np.ndarray) -> np.ndarray:
    """(N, 3) uint8: colour of each vertex of `mesh` (world) by its distance to `true` (object frame)."""
    posed = true.copy().apply_transform(world_from_object)
    share = np.clip(1e3 * distances_to(raycasting_scene(posed), mesh.vertices.astype(np.float32)) / WORST_MM, 0, 1)
    stops = np.linspace(0, 1, len(SCALE))
    return np.stack([np.interp(share, stops, channel) for channel in SCALE.T], axis=1).astype(np.uint8)


def _portrait(body: Body, points: np.ndarray, azimuth: float, elevation: float) -> Image.Image:
    """The body alone on a grey table, from where `points`, (N, 3) in the world, fill the panel."""
    camera = Intrinsics(PANEL, PANEL, 1.6 * PANEL, 1.6 * PANEL, (PANEL - 1) / 2, (PANEL - 1) / 2)
    pose = framing_pose(points, azimuth, elevation, camera, least_distance=0.1)
    table = trimesh.creation.box([4, 4, 0.02]).apply_translation([0, 0, -0.01 + min(0.0, points[:, 2].min() - 1e-3)])
    ground = Body(table, vertex_paint(np.full((len(table.vertices), 3), 205, np.uint8)), np.eye(4))
    lamp = Lamp(pose[:3, 3] + [0.2, 0.2, 1.0], samples=4)
    return Image.fromarray(Raycaster([body, ground], lamp).render(camera, pose).colour)


def _input(where: TrueFrame, label: int) -> Image.Image:
    """A square of the image around the object, its mask outlined."""
    own = where.frame.labels == label
    rows, columns = np.nonzero(own)
    edge = int(1.3 * max(np.ptp(rows), np.ptp(columns))) + 8
    top, left = (int((axis.min() + axis.max()) / 2) - edge // 2 for axis in (rows, columns))
    inner = own & np.roll(own, 1, 0) & np.roll(own, -1, 0) & np.roll(own, 1, 1) & np.roll(own, -1, 1)
    colour = np.where((own & ~inner)[..., None], MASK, where.frame.colour).astype(np.uint8)
    return Image.fromarray(colour).crop((left, top, left + edge, top + edge)).resize((PANEL, PANEL))
