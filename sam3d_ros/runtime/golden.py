"""Golden outputs: what a network answers, computed in float32, to objects that every engine can be asked about.

    python -m sam3d_ros.runtime.golden MODEL.onnx        writes MODEL.golden.npz, which is kept beside the model

An engine whose answer differs in shape or layout is refused.  Models without such a file are asked on the CPU first.
"""
from __future__ import annotations

import argparse
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .engine import (
    CPU_ENGINES,
    BuildOptions,
    Engine,
    EngineError,
    ModelFile,
    answers,
    available_engines,
    load_named,
    read_model,
)
from .signature import CROP, CROP_SPAN, STUDENT, VOLUME

VERSION = 1                  # of `golden_inputs`
LEAST_IOU = 0.99
MOST_TURN = 2.0              # degrees, of an axis of the layout
MOST_SHIFT = 0.01            # of the cube's edge: correction of its centre, and relative error of its edge

_VIEWS = 2
_DISTANCE = 5.0              # edges from the camera to the cube
_PITCH = np.deg2rad(35)      # of both cameras, downwards
_TURN = np.deg2rad(40)       # of the second camera about the vertical
_TABLE = 0.28                # y of the plane that all objects stand on, edges
_STEPS = 40                  # along a ray, to the surface


@dataclass(frozen=True)
class Golden:
    """inside: (B, 64, 64, 64) bool, the objects' voxels; layout: (B, 10) float32."""

    inside: np.ndarray
    layout: np.ndarray


@dataclass(frozen=True)
class Deviation:
    """How far an engine is from the golden outputs, for the worst object.

    iou: intersection over union of the voxels; turn: degrees between axes; shift: centre or edge, in edges
    """

    iou: float
    turn: float
    shift: float

    @property
    def accepted(self) -> bool:
        """Whether the engine may be used; never if anything is not finite."""
        return self.iou >= LEAST_IOU and self.turn <= MOST_TURN and self.shift <= MOST_SHIFT

    def __str__(self) -> str:
        return (f"vIoU {self.iou:.4f} (at least {LEAST_IOU}), axes {self.turn:.2f} deg (at most {MOST_TURN:g}), "
                f"centre and scale {self.shift:.4f} (at most {MOST_SHIFT:g})")


def golden_inputs() -> dict[str, np.ndarray]:
    """Inputs of the student's signature: four solids on a table, each seen from one or two sides."""
    shapes = _solids()
    inputs = {name: np.zeros(shape, np.float32)
              for name, shape in STUDENT.input_shapes(batch=len(shapes), views=_VIEWS).items()}
    upright_from_cube = _rotation(0, -_PITCH)
    for index, solid in enumerate(shapes):
        inputs["support"][index] = (*-upright_from_cube[1], _TABLE, 1)
        for view in range(1 + index % 2):
            upright_from_crop = _rotation(1, view * _TURN) @ upright_from_cube
            inputs["crops"][index, view] = _crop(solid, upright_from_crop)
            inputs["views"][index, view] = [*(upright_from_crop.T @ upright_from_cube).ravel(), _DISTANCE, 1]
        inputs["views"][index, 1 + index % 2:, :10] = inputs["views"][index, 0, :10]       # weight 0
    return inputs


def golden_of(outputs: Mapping[str, np.ndarray]) -> Golden:
    """What is compared of a network's outputs."""
    return Golden(outputs["distance"][:, 0] < 0, outputs["layout"])


def deviation(found: Golden, wanted: Golden) -> Deviation:
    """How far `found` is from `wanted`."""
    axes = (1, 2, 3)
    both = (found.inside & wanted.inside).sum(axis=axes)
    either = (found.inside | wanted.inside).sum(axis=axes)
    cosines = [(found.layout[:, a] * wanted.layout[:, a]).sum(axis=1) for a in (slice(0, 3), slice(3, 6))]
    turn = np.rad2deg(np.arccos(np.clip(cosines, -1, 1)))
    # Maxima that are not a number stay so, and are not accepted.
    return Deviation(float(np.where(either > 0, both / np.maximum(either, 1), 1.0).min()), float(turn.max()),
                     float(np.abs(found.layout[:, 6:] - wanted.layout[:, 6:]).max()))


def check(engine: Engine, wanted: Golden) -> Deviation:
    """Ask an engine.

    Raises EngineError ENGINE_INACCURATE with the figures if it is too far off; ENGINE_FAILED, ENGINE_OUT_OF_MEMORY if
    it does not answer.
    """
    outputs = answers(engine, golden_inputs())
    broken = [name for name, array in outputs.items() if not np.isfinite(array).all()]
    if broken:
        raise EngineError("ENGINE_INACCURATE", f"{engine.name}: {', '.join(broken)} not finite")
    found = deviation(golden_of(outputs), wanted)
    if not found.accepted:
        raise EngineError("ENGINE_INACCURATE", f"{engine.name}: {found}")
    return found


def reference(model: ModelFile) -> Golden:
    """Golden outputs of a model: from the file beside it, or computed now.  Raises EngineError."""
    return read_golden(model) or compute(model)


def compute(model: ModelFile) -> Golden:
    """The outputs of the first CPU engine, in float32.  Raises EngineError, ENGINE_UNAVAILABLE if there is none."""
    name = next(iter(available_engines()), None)
    if name is None:
        raise EngineError("ENGINE_UNAVAILABLE",
                          f"{model.path} has no {golden_path(model.path).name} of its own "
                          f"beside it (`python -m sam3d_ros.runtime.golden` writes it), and none of "
                          f"{', '.join(CPU_ENGINES)} is installed to compute it")
    engine = load_named(name, model, "fp32", 0, STUDENT, BuildOptions())
    try:
        return golden_of(answers(engine, golden_inputs()))
    finally:
        engine.close()


def golden_path(model: Path) -> Path:
    """Where the golden outputs of a model are kept."""
    return model.with_suffix(".golden.npz")


def write_golden(model: ModelFile) -> Path:
    """Compute and keep the golden outputs of a model."""
    golden, path = compute(model), golden_path(model.path)
    np.savez_compressed(path, version=VERSION, model=np.array(model.sha256), inside=np.packbits(golden.inside),
                        layout=golden.layout)
    return path


def read_golden(model: ModelFile) -> Golden | None:
    """The golden outputs kept beside a model; None if there are none, or if they are those of another model."""
    try:
        with np.load(golden_path(model.path), allow_pickle=False) as file:
            if int(file["version"]) != VERSION or str(file["model"]) != model.sha256:
                return None
            shapes = STUDENT.output_shapes(batch=len(_solids()))
            bits = np.unpackbits(file["inside"], count=int(np.prod(shapes["distance"])))
            return Golden(bits.astype(bool).reshape(-1, *(VOLUME,) * 3),
                          file["layout"].astype(np.float32).reshape(shapes["layout"]))
    # TypeError, on Python 3.10 AttributeError: it is one array, and no archive of several
    except (OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError,
            zipfile.BadZipFile, zlib.error):
        return None


def _solids() -> tuple[Callable[[np.ndarray], np.ndarray], ...]:
    """Signed distances, or bounds of them, of solids at points (..., 3) in edges, y down; they touch the table."""
    def ball(p: np.ndarray) -> np.ndarray:
        return np.linalg.norm(p - [0.0, _TABLE - 0.3, 0.0], axis=-1) - 0.3

    def box(p: np.ndarray) -> np.ndarray:
        c, s = np.cos(0.5), np.sin(0.5)
        local = np.stack([c * p[..., 0] + s * p[..., 2], p[..., 1] - _TABLE + 0.25, c * p[..., 2] - s * p[..., 0]], -1)
        return (np.abs(local) - [0.32, 0.25, 0.18]).max(axis=-1)

    def can(p: np.ndarray) -> np.ndarray:
        return np.maximum(np.linalg.norm(p[..., ::2], axis=-1) - 0.2, np.abs(p[..., 1] - _TABLE + 0.3) - 0.3)

    def ell(p: np.ndarray) -> np.ndarray:
        low = (np.abs(p - [0.0, _TABLE - 0.12, 0.0]) - [0.3, 0.12, 0.15]).max(axis=-1)
        high = (np.abs(p - [-0.2, _TABLE - 0.3, 0.0]) - [0.1, 0.3, 0.15]).max(axis=-1)
        return np.minimum(low, high)

    return ball, box, can, ell


def _rotation(axis: int, angle: float) -> np.ndarray:
    """Rotation (3, 3) about the axis x (0), y (1) or z (2)."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    rotation = np.eye(3)
    rotation[first, first] = rotation[second, second] = np.cos(angle)
    rotation[first, second], rotation[second, first] = -np.sin(angle), np.sin(angle)
    return rotation


def _crop(solid: Callable[[np.ndarray], np.ndarray], upright_from_crop: np.ndarray) -> np.ndarray:
    """Crop (6, 96, 96) of a solid on the table, by sphere tracing (Hart 1996)."""
    ticks = ((np.arange(CROP) + 0.5) / CROP - 0.5) * CROP_SPAN
    x, y = np.meshgrid(ticks, ticks)

    def distances(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = 1 + depth / _DISTANCE
        points = np.stack([x * scale, y * scale, depth], axis=-1) @ upright_from_crop.T
        return solid(points), _TABLE - points[..., 1]

    depth = np.full(x.shape, -1.0)
    for _ in range(_STEPS):
        depth = np.minimum(depth + np.minimum(*distances(depth)), 2.0)
    own, table = distances(depth)
    seen = np.minimum(own, table) < 1e-3
    mask = seen & (own < table)
    shade = np.where(mask, 0.7, 0.4) * np.clip(1 - 0.5 * depth, 0, 1)
    return np.stack([np.where(seen, depth, 0), seen, mask, shade, 0.8 * shade, 0.6 * shade]).astype(np.float32)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    print(write_golden(read_model(parser.parse_args().model)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
