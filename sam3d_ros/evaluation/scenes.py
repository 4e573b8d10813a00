"""The benchmark's rendered scenes: objects of the dev split on a table, at rest, seen by a robot's camera.

    easy       1 to 6 objects that stand apart
    clutter    8 to 12 objects, close together and against each other

A scene set is rendered once and kept as frame folders (perception/folder.py) with a gt.json each, as the real frames
have it, so that whatever judges those judges these:

    <set>/<noise>/<frame>/     the scene's first view, with sensor errors at each level of NOISE
    <set>-views/<frame>_<k>/   the same scene from elsewhere (k = 1 to 3), normal noise; only rendered if asked for

gt.json also holds what the frame-folder format has no place for: world_from_camera (4, 4) and support_height, the
table's, metres.  The same seed gives the same scenes.  World: origin in the middle of the table top, +Z up, metres.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import open3d as o3d
import trimesh
from tqdm import tqdm

from sam3d_ros.perception.folder import write_frame_folder
from sam3d_ros.perception.frame import Frame, Instance, Intrinsics
from sam3d_ros.perception.raycasting import raycasting_scene
from sam3d_ros.synth import sensor
from sam3d_ros.synth.raycaster import Body, Lamp, Raycaster, View, image_paint, pixel_rays
from sam3d_ros.synth.render import look_at
from sam3d_ros.synth.tabletop import SensorNoise, furniture, settled_poses

VERSION = 1                     # of the recipe below; a change makes other scenes, under another folder name
NOISE = ("none", "normal", "heavy")
VIEWS = 4                       # of each scene, the first included
SIZE = (640, 480)               # pixels
FOCAL_LENGTHS = (525.0, 575.0, 615.0)         # pixels, as common RGB-D cameras have at 640 x 480
AIM_SPREAD, ROLL_SPREAD = 0.03, np.deg2rad(8.0)     # metres, radians (1 sigma)
VIEW_TURN = np.deg2rad(90.0)    # between one view and the next, about +Z
VIEW_JITTER = np.deg2rad(25.0)
# Objects of which less is seen stay in the scene as obstacles, but are not asked for.
LEAST_VISIBLE_FRACTION, LEAST_PIXELS = 0.25, 300
MAX_DRAWS = 10                  # scenes drawn until one comes to rest


@dataclass(frozen=True)
class SceneSet:
    """counts: fewest and most objects of a scene; distance: metres, from the camera to the middle of the object that it
    looks at, and elevation: degrees, least and most; spacing, stacked: as for tabletop.settled_poses.
    """

    name: str
    counts: tuple[int, int]
    distance: tuple[float, float]
    elevation: tuple[float, float]
    spacing: float
    stacked: bool


SETS = (SceneSet("easy", (1, 6), (0.35, 1.1), (20, 70), 1.1, stacked=False),
        SceneSet("clutter", (8, 12), (0.5, 1.1), (15, 60), 0.35, stacked=True))


@dataclass(frozen=True)
class Model:
    """A textured mesh of the data folder.

    file: its path below the data folder; mesh: metres, object frame; image: (H, W, 3) uint8; uv: (V, 2), per vertex
    """

    file: str
    mesh: trimesh.Trimesh
    image: np.ndarray
    uv: np.ndarray

    @property
    def name(self) -> str:
        """File name without its suffix."""
        return Path(self.file).stem


def cache_root() -> Path:
    """Where rendered scenes are kept: $XDG_CACHE_HOME/sam3d_ros/scenes, else ~/.cache/sam3d_ros/scenes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam3d_ros" / "scenes"


def scene_folder(data: Path, cache: Path, scene_set: SceneSet, objects: int, seed: int, views: bool = False) -> Path:
    """Folder of a scene set of about `objects` objects, rendered now unless `cache` holds it already.

    data: folder with meshes/manifest.jsonl, of which the folder's name has a digest: other meshes are other scenes;
    views: the other views of the scenes instead of their first
    """
    digest = hashlib.sha256((data / "meshes" / "manifest.jsonl").read_bytes()).hexdigest()[:8]
    folder = cache / f"v{VERSION}-{objects}-objects-seed-{seed}-meshes-{digest}" / (
        scene_set.name + ("-views" if views else ""))
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tqdm(total=objects, desc=f"rendering {folder.name}", unit="object") as progress:
            for count in render_set(partial, scene_set, dev_models(data), objects, seed, views):
                progress.update(count)
        partial.rename(folder)
    return folder


@lru_cache(maxsize=1)
def dev_models(data: Path) -> tuple[Model, ...]:
    """The meshes of the dev split that enclose a solid (all of them, as delivered).

    Some are marked as not watertight, because surfaces touch themselves along an edge; the solid is well defined
    nevertheless, and nothing needs to be repaired.
    """
    rows = [json.loads(line) for line in (data / "meshes" / "manifest.jsonl").read_text().splitlines()]
    models = [load_model(data, row["file"]) for row in rows if row["split"] == "dev"]
    return tuple(model for model in models if encloses_a_solid(model.mesh))


def load_model(data: Path, file: str) -> Model:
    """The GLB at data/file with its texture."""
    mesh = trimesh.load(data / file, force="mesh", process=False)
    image = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))
    return Model(file, mesh, image, np.asarray(mesh.visual.uv))


def encloses_a_solid(mesh: trimesh.Trimesh) -> bool:
    """Whether every edge belongs to an even number of triangles, so that each ray tells inside from outside."""
    merged = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    merged.merge_vertices(merge_tex=True, merge_norm=True)
    counts = np.unique(merged.edges_sorted, axis=0, return_counts=True)[1]
    return bool((counts % 2 == 0).all())


# -------------------------------------------------------------------------------------------------------- scenes

@dataclass(frozen=True)
class Scene:
    """Objects at rest on a table, label k + 1 at index k; azimuth of the first camera, radians."""

    models: list[Model]
    bodies: list[Body]
    raycaster: Raycaster
    azimuth: float


def render_set(folder: Path, scene_set: SceneSet, models: Sequence[Model], objects: int, seed: int,
               views: bool) -> Iterator[int]:
    """Write scenes until `objects` objects are asked for in their first views; yields their number after each scene.

    views: write the scenes' other views, not the first
    """
    rng = np.random.default_rng([seed, *scene_set.name.encode()])
    deck: list[int] = []
    number = total = 0
    while total < objects:
        count = int(rng.integers(scene_set.counts[0], scene_set.counts[1] + 1))
        if len(deck) < count:                  # every model comes up equally often
            deck += rng.permutation(len(models)).tolist()
        drawn, deck = deck[:count], deck[count:]
        scene_seed = int(rng.integers(2**31))
        scene = settled_scene(scene_set, [models[i] for i in drawn], np.random.default_rng(scene_seed))
        name = f"{scene_set.name}_{number:03d}"
        asked = _write_view(scene, scene_set, 0, scene_seed, None if views else folder, name)
        for k in range(1, VIEWS if views else 1):
            _write_view(scene, scene_set, k, scene_seed, folder, f"{name}_{k}")
        number += 1
        total += asked
        yield asked


def settled_scene(scene_set: SceneSet, models: list[Model], rng: np.random.Generator) -> Scene:
    """The models, dropped onto a table until they rest."""
    poses = None
    for _ in range(MAX_DRAWS):
        with suppress(RuntimeError):
            poses = settled_poses(rng, [model.mesh for model in models], scene_set.spacing, scene_set.stacked)
            break
    if poses is None:
        raise RuntimeError(f"{', '.join(model.name for model in models)} never came to rest")
    bodies = [Body(model.mesh, image_paint(model.image, model.uv), pose, label)
              for label, (model, pose) in enumerate(zip(models, poses, strict=True), 1)]
    azimuth = rng.uniform(0, 2 * np.pi)
    lamp = Lamp(np.array([*(1.2 * _horizontal(azimuth + rng.uniform(0.5, 2.5))), rng.uniform(1.2, 2.0)]), samples=3)
    return Scene(models, bodies, Raycaster([*bodies, *furniture(rng)], lamp), azimuth)


def _write_view(scene: Scene, scene_set: SceneSet, k: int, seed: int, folder: Path | None, name: str) -> int:
    """Write the scene's k-th view, the first with every noise; returns the number of objects asked for in it.

    folder: None only counts
    """
    rng = np.random.default_rng([seed, k])
    centres = np.array([trimesh.transform_points(body.mesh.bounds, body.world_from_body).mean(axis=0)
                        for body in scene.bodies])
    middle = centres[np.linalg.norm(centres - np.median(centres, axis=0), axis=1).argmin()]
    focal = float(rng.choice(FOCAL_LENGTHS))
    intrinsics = Intrinsics(*SIZE, focal, focal, (SIZE[0] - 1) / 2, (SIZE[1] - 1) / 2)
    azimuth = scene.azimuth + k * VIEW_TURN + (rng.uniform(-VIEW_JITTER, VIEW_JITTER) if k else 0.0)
    world_from_camera = _camera_pose(middle, azimuth, scene_set, rng)
    view = scene.raycaster.render(intrinsics, world_from_camera)
    truth = _truth(scene, view, intrinsics, world_from_camera)
    if folder is not None:
        for noise in NOISE if k == 0 else ("normal",):
            place = (folder / noise if k == 0 else folder) / name
            write_frame_folder(place, _frame(view, truth, intrinsics, noise, rng))
            (place / "gt.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return len(truth["objects"])


def _camera_pose(middle: np.ndarray, azimuth: float, scene_set: SceneSet, rng: np.random.Generator) -> np.ndarray:
    """world_from_camera (4, 4), optical frame, of a camera that looks about at `middle`."""
    elevation, distance = np.deg2rad(rng.uniform(*scene_set.elevation)), rng.uniform(*scene_set.distance)
    eye = middle + distance * np.array([*(np.cos(elevation) * _horizontal(azimuth)), np.sin(elevation)])
    pose = np.eye(4)
    pose[:3, :3] = look_at(eye, middle + rng.normal(size=3) * AIM_SPREAD, rng.normal() * ROLL_SPREAD).T
    pose[:3, 3] = eye
    return pose


def _horizontal(azimuth: float) -> np.ndarray:
    return np.array([np.cos(azimuth), np.sin(azimuth)])


def _truth(scene: Scene, view: View, intrinsics: Intrinsics, world_from_camera: np.ndarray) -> dict:
    """Content of gt.json: the objects that lie within the image and of which enough is seen."""
    camera_from_world = np.linalg.inv(world_from_camera)
    rays = o3d.core.Tensor(pixel_rays(intrinsics, world_from_camera))
    border = np.unique(np.concatenate([view.labels[[0, -1]].ravel(), view.labels[:, [0, -1]].ravel()]))
    objects = []
    for model, body in zip(scene.models, scene.bodies, strict=True):
        pixels = int((view.labels == body.label).sum())
        visible = pixels / max(_silhouette(body, rays), 1)
        if pixels >= LEAST_PIXELS and visible >= LEAST_VISIBLE_FRACTION and body.label not in border:
            objects.append({"label": body.label, "mesh": model.file, "visible_fraction": round(visible, 4),
                            "pose_object_to_camera": (camera_from_world @ body.world_from_body).tolist()})
    return {"objects": objects, "world_from_camera": world_from_camera.tolist(), "support_height": 0.0}


def _silhouette(body: Body, rays: o3d.core.Tensor) -> int:
    """Number of pixels, of which `rays` are the rays in the world, that would show the body if it stood alone."""
    mesh = trimesh.Trimesh(trimesh.transform_points(body.mesh.vertices, body.world_from_body), body.mesh.faces,
                           process=False)
    return int(raycasting_scene(mesh).test_occlusions(rays).numpy().sum())


def _frame(view: View, truth: dict, intrinsics: Intrinsics, noise: str, rng: np.random.Generator) -> Frame:
    """What the camera reports; all objects keep their masks, only those asked for are instances."""
    names = {entry["label"]: Path(entry["mesh"]).stem for entry in truth["objects"]}
    instances = tuple(Instance(label, name) for label, name in names.items())
    grain = SensorNoise(1.0, view.depth.shape, int(rng.integers(2**31)))
    if noise == "none":
        colour, depth = view.colour, view.depth
    elif noise == "normal":
        colour, depth = grain.colour(view.colour), grain.depth(view.depth, view.depth_edges())
    else:
        colour, depth = grain.colour(view.colour), heavy_noise(view.depth, rng)
    return Frame(colour, depth, view.labels.astype(np.int32), intrinsics, instances)


def heavy_noise(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All errors of a poor depth camera at once; depth: (H, W) float32 metres, 0 = no reading."""
    for error in (sensor.axial_noise, sensor.smooth_error, sensor.quantised, sensor.flying_pixels,
                  sensor.blanked_edges, sensor.stereo_shadow, sensor.holes):
        depth = error(depth, rng)
    return depth.astype(np.float32)
