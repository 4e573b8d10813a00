"""What `sam3d reconstruct` wrote, as a scene of rigid bodies in a world with gravity."""
from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh

from ..perception.faults import Fault, FaultCode
from ..perception.folder import is_rigid
from ..perception.objects import Status
from .convex import MAX_PIECES, convex_pieces
from .physics import Body, BodyReport, settle
from .solid import solid_from_mesh

DENSITY = 300.0              # kg/m^3, about that of household goods: boxes are half empty, fruit is not
_MAX_BYTES = 2**26           # of objects.json and of each mesh
# Of a pose in objects.json, which does not say how sure it is: metres, radians.
_POSE_SIGMA = (0.005, 0.03)
_SAME_SUPPORT = 0.008        # metres between the undersides of objects that stand on one plane
_UP_TOLERANCE = np.cos(np.deg2rad(10))
_MAX_LABEL = 2**32 - 1
_NAME_LENGTH = 60            # letters of a class in a name: file systems refuse names of more than 255


@dataclass(frozen=True)
class SceneObject:
    """A rigid body.

    name: letters, digits and underscores, a letter first, unlike all others'; class_id: as the detector named it
    mesh: closed, metres, object frame; rgb: (N, 3) uint8, vertex colours; pieces: convex, each (K, 3) corners, metres
    world_from_object: (4, 4) float64; the world's +Z points up, z = 0 is the support
    mass: kg; centre_of_mass: (3,) metres, object frame; inertia: (3, 3) kg m^2 about it, object frame axes
    settled: how it came to lie there; None: it was left as it was seen
    is_doubtful: whether it is marked LOW_QUALITY in the result
    """

    name: str
    class_id: str
    mesh: trimesh.Trimesh
    rgb: np.ndarray
    pieces: tuple[np.ndarray, ...]
    world_from_object: np.ndarray
    mass: float
    centre_of_mass: np.ndarray
    inertia: np.ndarray
    settled: BodyReport | None
    is_doubtful: bool


@dataclass(frozen=True)
class Scene:
    """The objects, and where the camera saw them from: world_from_camera (4, 4), optical frame."""

    objects: tuple[SceneObject, ...]
    world_from_camera: np.ndarray


@dataclass(frozen=True)
class _Entry:
    """One entry of objects.json with its mesh; camera_from_object: (4, 4); is_doubtful: marked LOW_QUALITY."""

    label: int
    class_id: str
    camera_from_object: np.ndarray
    mesh: trimesh.Trimesh
    rgb: np.ndarray
    is_doubtful: bool


def read_scene(path: Path, density: float = DENSITY, max_pieces: int = MAX_PIECES, as_seen: bool = False) -> Scene:
    """The scene in a result folder of `sam3d reconstruct`, or in its objects.json.

    density: kg/m^3; max_pieces: convex pieces of an object at most; as_seen: leave the poses, else they are settled.
    Up is the objects' +Z, the support where most of them end below; the origin is on it, below their middle.
    Raises Fault(RESULT_INVALID).
    """
    file = path / "objects.json" if path.is_dir() else path
    entries = _read(file)
    world_from_camera = _gravity_frame(entries, file)
    poses = np.stack([world_from_camera @ entry.camera_from_object for entry in entries])
    reports: Sequence[BodyReport | None] = [None] * len(entries)
    if not as_seen:
        poses, reports = _settled(entries, poses)
    return Scene(tuple(_scene_object(entry, pose, report, density, max_pieces)
                       for entry, pose, report in zip(entries, poses, reports, strict=True)), world_from_camera)


def _invalid(path: Path, reason: object) -> Fault:
    return Fault(FaultCode.RESULT_INVALID, f"{path}: {reason}")


def _read(file: Path) -> list[_Entry]:
    if not file.is_file():
        raise _invalid(file, "is no file")
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise _invalid(file, f"is larger than {_MAX_BYTES} bytes")
        rows = json.loads(file.read_bytes())
        entries = [_entry(row, file) for row in rows]
    except (OSError, ArithmeticError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise _invalid(file, f"{type(error).__name__} {error}") from error
    if not entries:
        raise _invalid(file, "holds no object")
    if len({entry.label for entry in entries}) < len(entries):
        raise _invalid(file, "holds a label twice")
    return entries


def _entry(row: dict, file: Path) -> _Entry:
    pose = np.array(row["pose_object_to_camera"], np.float64)
    if not is_rigid(pose):
        raise _invalid(file, "holds a pose_object_to_camera that is no rigid motion")
    label, name = int(row["label"]), row["mesh"]
    if not 0 <= label <= _MAX_LABEL:
        raise _invalid(file, "holds a label that is no instance's")
    if Path(name).name != name:
        raise _invalid(file, f"names a mesh outside its folder: {name[:80]!r}")
    is_doubtful = row.get("status") == Status.LOW_QUALITY.name
    return _Entry(label, str(row["class_id"]), pose, *_read_mesh(file.parent / name), is_doubtful)


def _read_mesh(path: Path) -> tuple[trimesh.Trimesh, np.ndarray]:
    """A closed mesh and its vertices' colours, (N, 3) uint8.  Raises Fault(RESULT_INVALID)."""
    if not path.is_file():
        raise _invalid(path, "is no file")
    if path.stat().st_size > _MAX_BYTES:
        raise _invalid(path, f"is larger than {_MAX_BYTES} bytes")
    try:
        mesh = trimesh.load(path, file_type="ply", force="mesh", process=False)
        faces, rgb = mesh.faces, mesh.visual.vertex_colors[:, :3].copy()
    except Exception as error:          # trimesh trusts the header, and fails in many ways on one that is broken
        raise _invalid(path, f"is no PLY mesh: {type(error).__name__} {error}") from error
    if not len(faces) or faces.min() < 0 or faces.max() >= len(mesh.vertices):
        raise _invalid(path, "has no faces, or some of vertices that it does not hold")
    if not np.isfinite(mesh.vertices).all() or not mesh.is_volume:
        raise _invalid(path, "is not a closed mesh")
    return mesh, rgb


def _gravity_frame(entries: Sequence[_Entry], file: Path) -> np.ndarray:
    """world_from_camera (4, 4): +Z up, +X to the right of the image, origin on the support below the objects."""
    ups = np.stack([entry.camera_from_object[:3, 2] for entry in entries])
    # Unit vectors that agree have a mean of nearly unit length; that of opposite ones is zero, and has no direction.
    length = np.linalg.norm(ups.mean(axis=0))
    up = ups.mean(axis=0) / max(length, _UP_TOLERANCE)
    if length < _UP_TOLERANCE or (ups @ up).min() < _UP_TOLERANCE:
        raise _invalid(file, "the objects' +Z axes disagree on what is up")
    right = np.array([1.0, 0, 0]) if abs(up[0]) < 0.9 else np.array([0.0, 1, 0])
    right -= up * (right @ up)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(up, right), up])
    corners = [trimesh.transform_points(entry.mesh.vertices, entry.camera_from_object) @ rotation.T
               for entry in entries]
    undersides = np.array([points[:, 2].min() for points in corners])
    fellows = np.abs(undersides[:, None] - undersides) < _SAME_SUPPORT
    # The height that most share; of two that are shared by as many, the lower one.
    support = min(range(len(entries)), key=lambda index: (-fellows[index].sum(), undersides[index]))
    pose = np.eye(4)
    pose[:3, :3] = rotation
    middle = np.mean([points.mean(axis=0) for points in corners], axis=0)
    pose[:3, 3] = -middle[0], -middle[1], -undersides[fellows[support]].mean()
    return pose


def _settled(entries: Sequence[_Entry], poses: np.ndarray) -> tuple[np.ndarray, tuple[BodyReport, ...]]:
    """Poses (B, 4, 4), world_from_object, at which the objects rest, and how each was settled; poses: where they were
    seen."""
    covariance = np.diag(np.repeat(np.square(_POSE_SIGMA), 3))
    bodies = [Body(solid_from_mesh(entry.mesh.vertices, entry.mesh.faces), pose, covariance)
              for entry, pose in zip(entries, poses, strict=True)]
    settled = settle(bodies, np.array([0.0, 0, 1, 0]))
    return settled.poses, settled.report


def _scene_object(entry: _Entry, pose: np.ndarray, report: BodyReport | None, density: float,
                  max_pieces: int) -> SceneObject:
    """A rigid body at world_from_object (4, 4), with the mass properties of its mesh at a uniform density, kg/m^3."""
    mass = trimesh.triangles.mass_properties(entry.mesh.triangles, density=density)
    pieces = tuple(convex_pieces(entry.mesh.vertices, entry.mesh.faces, max_pieces))
    return SceneObject(_name(entry), entry.class_id, entry.mesh, entry.rgb, pieces, pose, float(mass.mass),
                       np.asarray(mass.center_mass), np.asarray(mass.inertia), report, entry.is_doubtful)


def _name(entry: _Entry) -> str:
    """Its class and label as an identifier; labels are unique, and so are what ends in _<label>."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", entry.class_id).strip("_")
    if not name[:1].isalpha():          # identifiers of USD may not start with a digit, as those of the YCB objects do
        name = f"object_{name}".rstrip("_")
    return f"{name[:_NAME_LENGTH].rstrip('_')}_{entry.label}"
