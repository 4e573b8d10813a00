"""Frame folders: a camera frame with its instance masks on disk, and the reconstructed objects beside it.

A frame folder holds
- `color.png`    8-bit RGB
- `depth.png`    16-bit grey, aligned to colour, 0 or 65535 = no reading, metres = value * depth_unit_m; may be absent
- `camera.json`  width, height, fx, fy, cx, cy (pixels); with depth, depth_unit_m (metres per depth step, 1e-6 to 1);
                 where known, world_from_camera (4 x 4, rigid, a frame whose +Z points up) and support_height (metres,
                 of what the objects stand on, in that frame)
- `masks.png`    8- or 16-bit grey, instance labels, 0 = background
- `labels.json`  instance label (as a string) -> class name; may be absent

The files are untrusted: whatever is wrong with them is a FRAME_FOLDER_INVALID fault that names the file.
"""
from __future__ import annotations

import json
import math
import os
import stat
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from .faults import Fault, FaultCode
from .frame import Frame, Instance, Intrinsics
from .gaps import without_gaps
from .masks import label_areas
from .objects import ReconstructedObject

_MAX_PIXELS = 2**25                # a little more than 8K video
_MAX_JSON_BYTES = 2**20
_MAX_LABEL = 2**16 - 1             # masks.png has 16 bits
_SATURATED = 2**16 - 1             # of depth.png: as far as its 16 bits go, or farther
_DEPTH_UNITS = (1e-6, 1.0)         # metres per depth step
_INTRINSICS_KEYS = ("width", "height", "fx", "fy", "cx", "cy")
_DEPTH_UNIT_KEY = "depth_unit_m"
_WORLD_KEY, _SUPPORT_KEY = "world_from_camera", "support_height"
# What Pillow raises for a broken PNG file.
_PNG_ERRORS = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, struct.error, zlib.error,
               Image.DecompressionBombError)
_GREY_8_BIT = ("L",)
_SPREAD = ("L;2", "L;4")           # raw modes of grey images whose values Pillow spreads over 0 to 255
_GREY_16_BIT = ("I;16", "I")       # Pillow before 11 opens a 16-bit PNG as I


def read_frame_folder(folder: Path, has_masks: bool = True) -> Frame:
    """The frame that `folder` holds; `frame_id` is its name, and each label of masks.png or labels.json an instance.

    A label of masks.png that labels.json does not name has an empty class; a named label without a pixel stays an
    instance, so that the pipeline reports it as rejected rather than losing it silently.
    has_masks: False: masks.png and labels.json are not read, and the frame has no instances.

    Raises Fault(FRAME_FOLDER_INVALID): a file is missing or unreadable, or the files contradict each other.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise _invalid(folder, "is not a folder")
    if not (folder / "camera.json").exists() and any(folder.glob("*/camera.json")):
        raise _invalid(folder, f"is not a frame folder, but holds some: give these, {folder}/*")
    has_depth = os.path.lexists(folder / "depth.png")
    camera = _read_json(folder / "camera.json")
    intrinsics, depth_unit_m = _camera(camera, folder / "camera.json", has_depth)
    world_from_camera, support_height = _world(camera, folder / "camera.json")
    size = (intrinsics.width, intrinsics.height)
    colour = _read_png(folder / "color.png", ("RGB",), size)
    depth = None
    if has_depth:
        steps = _read_png(folder / "depth.png", _GREY_16_BIT, size)
        depth = without_gaps(np.where(steps == _SATURATED, 0, steps).astype(np.float32) * np.float32(depth_unit_m))
    labels, instances = _read_masks(folder, size) if has_masks else (np.zeros(colour.shape[:2], np.int32), ())
    return Frame(colour, depth, labels, intrinsics, instances, world_from_camera, frame_id=folder_name(folder),
                 support_height=support_height)


def folder_name(folder: Path) -> str:
    """Name of a folder as it was given, which may be a link; "." and ".." have one as well."""
    return Path(os.path.abspath(folder)).name


def write_frame_folder(folder: Path, frame: Frame, depth_unit_m: float = 0.0001) -> None:
    """Write `frame` as a frame folder, over an earlier one; what the format has no place for is left out.

    Depth is rounded to `depth_unit_m` (metres); from 65535 steps of it on, it is written as no reading.

    Raises ValueError: a label is negative or above 65535; OSError.
    """
    folder = Path(folder)
    if frame.labels.min() < 0 or frame.labels.max() > _MAX_LABEL:
        raise ValueError(f"instance labels must lie in 0..{_MAX_LABEL}")
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame.colour).save(folder / "color.png")
    Image.fromarray(frame.labels.astype(np.uint16)).save(folder / "masks.png")
    camera: dict = {key: getattr(frame.intrinsics, key) for key in _INTRINSICS_KEYS}
    if frame.world_from_camera is not None:
        camera[_WORLD_KEY] = np.asarray(frame.world_from_camera, np.float64).tolist()
    if frame.support_height is not None:
        camera[_SUPPORT_KEY] = float(frame.support_height)
    if frame.depth is None:
        (folder / "depth.png").unlink(missing_ok=True)
    else:
        steps = np.rint(frame.depth / depth_unit_m)
        steps[steps >= _SATURATED] = 0
        Image.fromarray(steps.astype(np.uint16)).save(folder / "depth.png")
        camera[_DEPTH_UNIT_KEY] = depth_unit_m
    _write_json(folder / "camera.json", camera)
    _write_json(folder / "labels.json", {str(instance.label): instance.class_id for instance in frame.instances})


def _read_masks(folder: Path, size: tuple[int, int]) -> tuple[np.ndarray, tuple[Instance, ...]]:
    """(H, W) int32 labels of an image of `size`, width and height, and their instances."""
    labels = _read_png(folder / "masks.png", _GREY_16_BIT + _GREY_8_BIT, size).astype(np.int32)
    class_ids = _read_class_ids(folder / "labels.json") if os.path.lexists(folder / "labels.json") else {}
    present = label_areas(labels).keys()
    return labels, tuple(Instance(label, class_ids.get(label, "")) for label in sorted(present | class_ids.keys()))


def clear_objects(folder: Path) -> None:
    """Remove what an earlier `write_objects` left in `folder`, and nothing else."""
    folder = Path(folder)
    (folder / "objects.json").unlink(missing_ok=True)
    for mesh in folder.glob("object_*.ply"):
        if mesh.stem.removeprefix("object_").isdecimal():
            mesh.unlink()


def write_objects(folder: Path, objects: Sequence[ReconstructedObject], ids: Sequence[str], latency_ms: float) -> None:
    """Write `objects.json` and one `object_<label>.ply` per object into `folder`, in place of an earlier result.

    ids: one per object. latency_ms: from the frame in memory to all its objects, milliseconds.
    Poses are object frame -> camera (optical) frame, lengths are metres. objects.json is written last: where it
    exists, every mesh that it names does too.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    clear_objects(folder)
    entries = []
    for item, item_id in zip(objects, ids, strict=True):
        mesh = f"object_{item.label}.ply"
        write_ply(folder / mesh, item.vertices, item.triangles, item.vertex_rgba)
        entries.append({
            "label": item.label,
            "id": item_id,
            "class_id": item.class_id,
            "score": float(item.score),
            "pose_object_to_camera": np.asarray(item.camera_from_object, np.float64).tolist(),
            "size": np.asarray(item.size, np.float64).tolist(),
            "scale_source": item.scale_source.name,
            "scale_std": float(item.scale_std),
            "visible_fraction": float(item.visible_fraction),
            "status": item.status.name,
            "mesh": mesh,
            "latency_ms": float(latency_ms),
        })
    _write_json(folder / "objects.json", entries)


def write_ply(path: Path, vertices: np.ndarray, triangles: np.ndarray, vertex_rgba: np.ndarray) -> None:
    """Write a coloured triangle mesh as binary little-endian PLY.

    vertices: (N, 3) metres; triangles: (M, 3) vertex indices; vertex_rgba: (N, 4) uint8
    """
    vertex_type = [("xyz", "<f4", 3), ("rgba", "u1", 4)]
    face_type = [("corners", "u1"), ("indices", "<i4", 3)]
    vertex_rows = np.empty(len(vertices), vertex_type)
    vertex_rows["xyz"], vertex_rows["rgba"] = vertices, vertex_rgba
    face_rows = np.empty(len(triangles), face_type)
    face_rows["corners"], face_rows["indices"] = 3, triangles
    header = "\n".join([
        "ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {channel}" for channel in ("red", "green", "blue", "alpha")),
        f"element face {len(triangles)}", "property list uchar int vertex_indices", "end_header", "",
    ])
    with open(path, "wb") as file:
        file.write(header.encode("ascii"))
        file.write(vertex_rows.tobytes())
        file.write(face_rows.tobytes())


def is_rigid(pose: np.ndarray) -> bool:
    """Whether a matrix from a file is (4, 4), and turns and shifts, but neither scales, shears nor mirrors; as exact as
    one that was written with four digits."""
    return pose.shape == (4, 4) and bool(np.isfinite(pose).all()) and np.abs(pose[3] - [0, 0, 0, 1]).max() <= 1e-6 \
        and np.abs(pose[:3, :3] @ pose[:3, :3].T - np.eye(3)).max() <= 1e-3 and np.linalg.det(pose[:3, :3]) > 0


def _invalid(path: Path, reason: str) -> Fault:
    return Fault(FaultCode.FRAME_FOLDER_INVALID, f"{path} {reason}")


def _camera(camera: dict, path: Path, has_depth: bool) -> tuple[Intrinsics, float]:
    """Intrinsics and metres per depth step (1 without depth)."""
    allowed = {*_INTRINSICS_KEYS, _DEPTH_UNIT_KEY}
    needed = allowed if has_depth else set(_INTRINSICS_KEYS)
    if missing := needed - camera.keys():
        raise _invalid(path, f"lacks {', '.join(sorted(missing))}")
    for key, value in ((key, camera[key]) for key in sorted(allowed & camera.keys())):
        if not isinstance(value, float) or not math.isfinite(value):
            raise _invalid(path, f"has {key} that is not a finite number")
        if value <= 0 and key not in ("cx", "cy"):
            raise _invalid(path, f"has {key} = {value:g}, which must be positive")
    depth_unit_m = camera.get(_DEPTH_UNIT_KEY, 1.0)
    if not _DEPTH_UNITS[0] <= depth_unit_m <= _DEPTH_UNITS[1]:
        raise _invalid(path, f"has {_DEPTH_UNIT_KEY} = {depth_unit_m:g}, which is not within {_DEPTH_UNITS[0]:g} to "
                             f"{_DEPTH_UNITS[1]:g} m")
    width, height = camera["width"], camera["height"]
    if not (width.is_integer() and height.is_integer()):
        raise _invalid(path, "has a width or height that is not a whole number")
    if width * height > _MAX_PIXELS:
        raise _invalid(path, f"has {width:.0f} x {height:.0f} pixels; at most {_MAX_PIXELS} are read")
    focal_and_centre = (camera[key] for key in _INTRINSICS_KEYS[2:])
    return Intrinsics(int(width), int(height), *focal_and_centre), depth_unit_m


def _world(camera: dict, path: Path) -> tuple[np.ndarray | None, float | None]:
    """world_from_camera (4, 4) and support_height, metres, each None where camera.json does not have it."""
    height = camera.get(_SUPPORT_KEY)
    if height is not None and not (isinstance(height, float) and math.isfinite(height)):
        raise _invalid(path, f"has {_SUPPORT_KEY} that is not a finite number")
    if _WORLD_KEY not in camera:
        return None, height
    try:
        pose = np.array(camera[_WORLD_KEY], np.float64)
    except (TypeError, ValueError):
        pose = np.empty(0)
    if not is_rigid(pose):
        raise _invalid(path, f"has {_WORLD_KEY} that is not a rigid 4 x 4 transform")
    return pose, height


def _read_class_ids(path: Path) -> dict[int, str]:
    """Instance label -> class name."""
    class_ids = {}
    for key, name in _read_json(path).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 5 and 0 < int(key) <= _MAX_LABEL):
            raise _invalid(path, f"has the key {key[:40]!r}, which is not an instance label (1 to {_MAX_LABEL})")
        if not isinstance(name, str):
            raise _invalid(path, f"has a class name for label {key} that is not a string")
        class_ids[int(key)] = name
    return class_ids


def _open_file(path: Path) -> BinaryIO:
    """The regular file at `path`, open for reading; a pipe or a device could block or deliver without end.

    Raises Fault(FRAME_FOLDER_INVALID): it is missing or not a regular file; OSError: it cannot be opened.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _invalid(path, "is not a regular file")
        return open(path, "rb")
    except FileNotFoundError:
        raise _invalid(path, "is a link to a missing file" if path.is_symlink() else "is missing") from None


def _read_json(path: Path) -> dict:
    """The object in a JSON file, whole numbers as float (a number of any length stays a float, if need be inf)."""
    try:
        with _open_file(path) as file:
            text = file.read(_MAX_JSON_BYTES + 1)
        if len(text) > _MAX_JSON_BYTES:
            raise _invalid(path, f"is larger than {_MAX_JSON_BYTES} bytes")
        content = json.loads(text, parse_int=float)
    except (OSError, ValueError, RecursionError) as error:
        raise _invalid(path, f"cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise _invalid(path, "does not hold a JSON object")
    return content


def _read_png(path: Path, modes: tuple[str, ...], size: tuple[int, int]) -> np.ndarray:
    """Pixels of a PNG file that must have one of Pillow's `modes` and `size` (width, height); its size is known, and
    so bounded, before anything is decompressed."""
    try:
        with _open_file(path) as file, Image.open(file, formats=("PNG",)) as image:
            if image.size != size:
                raise _invalid(path, f"is {image.width} x {image.height}, but camera.json says {size[0]} x {size[1]}")
            if image.mode not in modes:
                raise _invalid(path, f"has Pillow mode {image.mode}, wanted {' or '.join(modes)}")
            if image.tile[0][3] in _SPREAD:
                raise _invalid(path, "has fewer than 8 bits a pixel")
            return np.array(image)
    except UnidentifiedImageError:
        raise _invalid(path, "cannot be read: it is no PNG file") from None
    except _PNG_ERRORS as error:
        raise _invalid(path, f"cannot be read: {error}") from error


def _write_json(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
