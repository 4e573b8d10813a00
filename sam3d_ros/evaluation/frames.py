"""Product and baselines, judged on frame folders that also hold the truth (gt.json).

gt.json: {"objects": [{"label", "mesh" (path below the mesh root), "pose_object_to_camera" (4x4), "visible_fraction"}]},
and of rendered scenes also {"world_from_camera" (4x4, +Z up), "support_height" (metres, world z)}.
"""
from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from sam3d_ros.evaluation import baselines
from sam3d_ros.evaluation.metrics import ShapeErrors, compare, mean_errors
from sam3d_ros.evaluation.normalised import compare_normalised
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.folder import folder_name, read_frame_folder
from sam3d_ros.perception.frame import Frame
from sam3d_ros.perception.objects import ReconstructedObject
from sam3d_ros.perception.pipeline import Pipeline
from sam3d_ros.scene.rebuild import reconstruct

# Words in an object's name that tell a thin-walled container: its volume is mostly wall, so that a small error of the
# surface costs most of the volumetric IoU whoever rebuilds it.
THIN_WALLED = {"basket", "bowl", "bucket", "cup", "glass", "mug", "pan", "pitcher", "plate", "pot", "skillet", "tray"}


# Objects of the dev split whose mesh is not what a single rigid object looks like: a chain, and the rim of a lid of
# which the scan lacks the glass. They stay in all means; beside these, reports have the means without them.
UNSOUND = {"chain", "skillet_lid"}


@dataclass(frozen=True)
class TrueObject:
    """An object of the ground truth.

    model: mesh in the object frame, metres; camera_from_object: (4, 4) float64
    """

    label: int
    name: str
    model: trimesh.Trimesh
    camera_from_object: np.ndarray
    visible_fraction: float

    @cached_property
    def posed(self) -> trimesh.Trimesh:
        """The mesh in the camera frame."""
        return self.model.copy().apply_transform(self.camera_from_object)

    @property
    def is_thin_walled(self) -> bool:
        """Whether its name tells a thin-walled container."""
        return any({word, word.removesuffix("s")} & THIN_WALLED for word in re.split("[^a-z]+", self.name.lower()))


@dataclass(frozen=True)
class TrueFrame:
    """A frame folder, by its name, with its true objects.

    world_from_camera: (4, 4), a world whose +Z points up, and support_height: metres, world z of what the objects stand
    on; None where unknown. The methods are not given them: they are what TF would tell a robot.
    """

    name: str
    frame: Frame
    objects: list[TrueObject]
    world_from_camera: np.ndarray | None = None
    support_height: float | None = None


@dataclass(frozen=True)
class Score:
    """One object as one method rebuilt it; mesh (camera frame, metres) and errors are None if it found no shape."""

    method: str
    frame: str
    true: TrueObject
    mesh: trimesh.Trimesh | None
    errors: ShapeErrors | None


# Mesh per label, camera frame, metres. Only the oracle may look at the truth.
Method = Callable[[TrueFrame], Mapping[int, trimesh.Trimesh]]

BASELINES: dict[str, Method] = {
    "convex hull": lambda true: baselines.convex_hulls(true.frame),
    "extruded hull": lambda true: baselines.extruded_hulls(true.frame),
    "oriented box": lambda true: baselines.oriented_boxes(true.frame),
    "oracle": lambda true: baselines.oracle(true.frame, {item.label: item.model for item in true.objects}),
}


def live(pipeline: Pipeline) -> Method:
    """The product, run now; objects that it rejects are named on stderr."""

    def rebuild(true: TrueFrame) -> dict[int, trimesh.Trimesh]:
        result = reconstruct(pipeline, true.frame)
        for rejection in result.rejections:
            print(f"{true.name}: object {rejection.label} rejected: {rejection.fault}", file=sys.stderr)
        return {item.label: posed_mesh(item) for item in result.objects}

    return rebuild


def stored(results: Path) -> Method:
    """The product's output as `sam3d reconstruct` wrote it to the folder `results`; FileNotFoundError if no frame has
    any.
    """
    if not any(results.glob("*/objects.json")):
        raise FileNotFoundError(f"{results} holds no frame's objects.json")

    def read(true: TrueFrame) -> dict[int, trimesh.Trimesh]:
        file = results / true.name / "objects.json"
        if not file.exists():
            print(f"{true.name}: {file} does not exist", file=sys.stderr)
            return {}
        try:
            return {entry["label"]: _load_mesh(file.parent / entry["mesh"]).apply_transform(
                entry["pose_object_to_camera"]) for entry in json.loads(file.read_text())}
        except Exception as error:      # trimesh fails in as many ways as a file can be broken
            raise Fault(FaultCode.FRAME_FOLDER_INVALID, f"{file}: {type(error).__name__}: {error}") from error

    return read


def frame_folders(root: Path) -> list[Path]:
    """Folders below `root` that hold a frame with ground truth, by name; FileNotFoundError if there are none."""
    folders = sorted(path.parent for path in root.glob("*/gt.json"))
    if not folders:
        raise FileNotFoundError(f"{root} holds no frame folder with a gt.json")
    return folders


def read_true_frame(folder: Path, mesh_root: Path) -> TrueFrame:
    """A frame folder with gt.json; the true meshes are found below `mesh_root`.

    Raises FileNotFoundError, and Fault(FRAME_FOLDER_INVALID) for a gt.json that is not as it should be.
    """
    try:
        truth = json.loads((folder / "gt.json").read_text())
        entries = [(entry["label"], entry["mesh"], np.array(entry["pose_object_to_camera"], float).reshape(4, 4),
                    entry.get("visible_fraction", 1.0)) for entry in truth["objects"]]
        pose = truth.get("world_from_camera")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Fault(FaultCode.FRAME_FOLDER_INVALID,
                    f"{folder / 'gt.json'}: {type(error).__name__}: {error}") from error
    objects = [TrueObject(label, Path(mesh).stem, _load_true_mesh(mesh_root / mesh), camera_from_object, visible)
               for label, mesh, camera_from_object, visible in entries]
    return TrueFrame(folder_name(folder), read_frame_folder(folder), objects,
                     None if pose is None else np.array(pose), truth.get("support_height"))


def judge(folders: Iterable[Path], mesh_root: Path, methods: Mapping[str, Method]) -> list[Score]:
    """Scores of every method on every true object of the frame folders."""
    return [score for folder in folders for score in judge_frame(read_true_frame(folder, mesh_root), methods)]


def judge_frame(true_frame: TrueFrame, methods: Mapping[str, Method]) -> list[Score]:
    """Scores of every method on every true object of one frame; a Fault is named on stderr, and nothing was found.

    Raises Fault(ENGINE_FAILED, ENGINE_OUT_OF_MEMORY), which says nothing about a method.
    """
    scores = []
    for name, method in methods.items():
        try:
            meshes = method(true_frame)
        except Fault as fault:
            if fault.code in (FaultCode.ENGINE_FAILED, FaultCode.ENGINE_OUT_OF_MEMORY):
                raise
            print(f"{true_frame.name}: {name}: {fault}", file=sys.stderr)
            meshes = {}
        scores += [_score(name, true_frame.name, true, meshes.get(true.label)) for true in true_frame.objects]
    return scores


def report(scores: list[Score]) -> dict[str, Any]:
    """Per method its means over all objects, over solid, over thin-walled and over sound ones, and every object."""
    methods = dict.fromkeys(score.method for score in scores)
    return {method: _method_report([score for score in scores if score.method == method]) for method in methods}


def group_report(scores: list[Score]) -> dict[str, Any]:
    """How many objects were found, how many of the meshes are closed, and the mean errors of those found."""
    found = [score for score in scores if score.errors]
    return {
        "objects": len(scores),
        "found": len(found),
        "watertight": sum(bool(score.mesh.is_watertight) for score in found),
        "mean": mean_errors([score.errors for score in found]) if found else None,
    }


def normalised_means(scores: Sequence[Score]) -> dict[str, float] | None:
    """SAM 3D's protocol: mean of every field of NormalisedErrors over the objects found; None if there are none."""
    rows = [asdict(compare_normalised(score.mesh, score.true.posed)) for score in scores if score.mesh is not None]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {"objects": len(rows)} \
        if rows else None


def table(scores: list[Score]) -> str:
    """The scores as text: every object of the first method, then the means of all methods."""
    columns = f"{'CD mm':>8}{'F@5':>7}{'F@10':>7}{'vIoU':>7}{'ADD-S':>7}{'boxIoU':>8}"
    product = scores[0].method if scores else ""
    lines = [f"{'frame':24}{product:26}{columns}"]
    lines += [f"{score.frame:24}{score.true.name:26}{_figures(asdict(score.errors)) if score.errors else '   missing'}"
              for score in scores if score.method == product]
    lines += ["", f"{'mean of':16}{'objects':18}{'found':>16}{columns}"]
    for method, summary in report(scores).items():
        for group in ("all", "solid", "thin-walled"):
            if summary[group]["objects"]:
                found = f"{summary[group]['found']} of {summary[group]['objects']}"
                means = _figures(summary[group]["mean"]) if summary[group]["mean"] else ""
                lines.append(f"{method:16}{group:18}{found:>16}{means}")
    return "\n".join(lines)


def _score(method: str, frame: str, true: TrueObject, mesh: trimesh.Trimesh | None) -> Score:
    return Score(method, frame, true, mesh, None if mesh is None else compare(mesh, true.posed))


def _method_report(scores: list[Score]) -> dict[str, Any]:
    return {
        "all": group_report(scores),
        "solid": group_report([score for score in scores if not score.true.is_thin_walled]),
        "thin-walled": group_report([score for score in scores if score.true.is_thin_walled]),
        "sound": group_report([score for score in scores if score.true.name not in UNSOUND]),
        "each": [{"frame": score.frame, "label": score.true.label, "object": score.true.name,
                  "visible_fraction": score.true.visible_fraction,
                  "watertight": bool(score.mesh and score.mesh.is_watertight),
                  "errors": asdict(score.errors) if score.errors else None} for score in scores],
    }


def _figures(errors: Mapping[str, float]) -> str:
    return (f"{errors['chamfer_mm']:8.2f}{errors['f_score_5mm']:7.2f}{errors['f_score_10mm']:7.2f}"
            f"{errors['volume_iou']:7.2f}{errors['add_s']:7.3f}{errors['box_iou']:8.2f}")


def posed_mesh(item: ReconstructedObject) -> trimesh.Trimesh:
    """Its mesh in the camera frame."""
    return trimesh.Trimesh(item.vertices, item.triangles, process=False).apply_transform(item.camera_from_object)


@lru_cache(maxsize=64)
def _load_true_mesh(path: Path) -> trimesh.Trimesh:
    """Shared by all objects of one kind: not to be changed.  Raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"the true mesh {path} does not exist: --meshes is where gt.json's paths start")
    return _load_mesh(path)


def _load_mesh(path: Path) -> trimesh.Trimesh:
    return trimesh.load(path, force="mesh")
