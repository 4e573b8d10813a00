"""A table with household objects, seen by a 640x480 RGB-D camera: the input of the benchmarks, made anew every time."""
from __future__ import annotations

import numpy as np
import trimesh

from sam3d_ros.perception.frame import Frame, Instance, Intrinsics
from sam3d_ros.synth.raycaster import Body, Lamp, Raycaster, vertex_paint
from sam3d_ros.synth.sensor import axial_noise
from sam3d_ros.synth.shapes import Shape, random_shape

CAMERA = Intrinsics(width=640, height=480, fx=610.0, fy=610.0, cx=319.5, cy=239.5)
CAMERA_POSITION = np.array([0.0, -0.6, 0.45])        # metres; the middle of the table's top is the origin
KINDS = ("box", "mug", "bottle", "can", "apple")
PLACES = np.array([[0.0, 0.0], [-0.2, 0.12], [0.2, 0.12], [-0.17, -0.15], [0.17, -0.15]])
TABLE_SIZE = (1.6, 1.2, 0.04)


def tabletop(objects: int, seed: int = 0, without: int | None = None) -> Frame:
    """A frame with `objects` (1 to 5) separate objects, labels from 1 on; depth with the noise of a depth camera.

    without: label of one that is not there; all else is as with it, the noise, too
    """
    rng = np.random.default_rng(seed)
    shapes = {label: random_shape(rng, kind) for label, kind in enumerate(KINDS[:objects], 1)}
    shapes.pop(without, None)
    bodies = [_table(), *(_standing(shape, PLACES[label - 1], label) for label, shape in shapes.items())]
    world_from_camera = _looking_at_origin(CAMERA_POSITION)
    view = Raycaster(bodies, Lamp(samples=1)).render(CAMERA, world_from_camera)
    return Frame(
        colour=view.colour,
        depth=axial_noise(view.depth, rng),
        labels=view.labels.astype(np.int32),
        intrinsics=CAMERA,
        instances=tuple(Instance(label, shape.kind) for label, shape in shapes.items()),
        world_from_camera=world_from_camera,
    )


def _table() -> Body:
    mesh = trimesh.creation.box(extents=TABLE_SIZE)
    grey = np.full((len(mesh.vertices), 3), 150, np.uint8)
    return Body(mesh, vertex_paint(grey), trimesh.transformations.translation_matrix([0, 0, -TABLE_SIZE[2] / 2]))


def _standing(shape: Shape, place: np.ndarray, label: int) -> Body:
    world_from_body = trimesh.transformations.translation_matrix([*place, shape.mesh.extents[2] / 2])
    return Body(shape.mesh, vertex_paint(shape.rgb), world_from_body, label)


def _looking_at_origin(position: np.ndarray) -> np.ndarray:
    """world_from_camera (4, 4) of a level camera, optical frame, at `position`."""
    z = -position / np.linalg.norm(position)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= np.linalg.norm(x)
    pose = np.eye(4)
    pose[:3] = np.stack([x, np.cross(z, x), z, position], axis=1)
    return pose
