"""`sam3d bench shape`: the product on the rendered scenes of scenes.py, in sections that can be run apart.

    core          errors on both sets with normal noise, beside the baselines; by object and by visibility
    oracle        upper bounds: the true mesh, registered to the depth; and its true distance on the network's grid
    noise         errors without noise and with heavy noise
    protocol      SAM 3D's own protocol
    robustness    errors with the input spoiled, over those with the input as it is
    no_depth      colour and mask alone, after similarity alignment; and with the support plane known
    visibility    objects of which 25 to 50 % are seen
    views         two and four fused views against one
    colour        error of the colours on the unseen sides
    uncertainty   whether vertex_std tells where the surface is wrong
    ablation      what symmetry, colour and the free space around are worth (depth and views: no_depth, views)

Distances are metric and nothing is aligned unless a section says so.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from sam3d_ros.evaluation.alignment import similarity
from sam3d_ros.evaluation.baselines import true_distances
from sam3d_ros.evaluation.calibration import reliability, vertex_errors
from sam3d_ros.evaluation.colour import colour_errors
from sam3d_ros.evaluation.frames import (
    BASELINES,
    UNSOUND,
    Method,
    Score,
    TrueFrame,
    TrueObject,
    frame_folders,
    group_report,
    judge_frame,
    normalised_means,
    posed_mesh,
    read_true_frame,
    report,
)
from sam3d_ros.evaluation.metrics import surface_distances, volume_iou
from sam3d_ros.evaluation.perturbations import PERTURBATIONS, own_pixels_only, without_colour
from sam3d_ros.evaluation.scenes import SETS, dev_models, scene_folder
from sam3d_ros.perception.evidence import Observation
from sam3d_ros.perception.frame import Frame
from sam3d_ros.perception.objects import ReconstructedObject
from sam3d_ros.perception.pipeline import Pipeline, PipelineResult
from sam3d_ros.scene.rebuild import reconstruct

PRODUCT, ORACLE = "sam3d", "oracle"
UPPER_BOUNDS: dict[str, Method] = {
    "true mesh, registered": BASELINES[ORACLE],
    "true distance, 64^3": lambda true: true_distances(true.frame, {item.label: item.posed for item in true.objects})}
NORMAL = "normal"
SCENE_SETS = {scene_set.name: scene_set for scene_set in SETS}
LOW_VISIBILITY = (0.25, 0.5)
VISIBILITY_STEPS = np.linspace(0, 1, 11)
# Baselines of the tables that are dear to compute.
FEW_BASELINES = ("extruded hull",)

Results = Mapping[int, ReconstructedObject]


@dataclass(frozen=True)
class Pair:
    """A true object and what was made of it, or None."""

    where: TrueFrame
    true: TrueObject
    item: ReconstructedObject | None


@dataclass
class Bench:
    """The scenes and the product's results on them, each made when first asked for.

    data: folder of the third-party data; cache: where rendered scenes are kept; objects: about how many in each set
    """

    pipeline: Pipeline
    data: Path
    cache: Path
    objects: int
    seed: int
    _frames: dict[tuple[str, str], list[TrueFrame]] = field(default_factory=dict)
    _results: dict[str, list[Results]] = field(default_factory=dict)
    _scores: dict[str, list[Score]] = field(default_factory=dict)

    def frames(self, scene_set: str, noise: str = NORMAL) -> list[TrueFrame]:
        """First views of a set's scenes with one level of noise."""
        if (scene_set, noise) not in self._frames:
            folder = scene_folder(self.data, self.cache, SCENE_SETS[scene_set], self.objects, self.seed) / noise
            self._frames[scene_set, noise] = [read_true_frame(path, self.data) for path in frame_folders(folder)]
        return self._frames[scene_set, noise]

    def other_views(self, scene_set: str) -> list[TrueFrame]:
        """The other views of a set's scenes, normal noise; named <first view>_<k>."""
        if (scene_set, "views") not in self._frames:
            folder = scene_folder(self.data, self.cache, SCENE_SETS[scene_set], self.objects, self.seed, views=True)
            self._frames[scene_set, "views"] = [read_true_frame(path, self.data) for path in frame_folders(folder)]
        return self._frames[scene_set, "views"]

    def reconstruct(self, frame: Frame, **earlier: Any) -> Results:
        """The product's results by label."""
        return by_label(reconstruct(self.pipeline, frame, **earlier))

    def results(self, scene_set: str) -> list[Results]:
        """The product on every frame of `frames(scene_set)`."""
        if scene_set not in self._results:
            self._results[scene_set] = [self.reconstruct(asked_for(where)) for where in self.frames(scene_set)]
        return self._results[scene_set]

    def pairs(self, scene_set: str) -> list[Pair]:
        """`results` beside the truth."""
        return [pair for where, results in zip(self.frames(scene_set), self.results(scene_set), strict=True)
                for pair in paired(where, results)]

    def scores(self, scene_set: str) -> list[Score]:
        """Product and baselines (but the oracle), normal noise."""
        if scene_set not in self._scores:
            methods = {name: method for name, method in BASELINES.items() if name != ORACLE}
            self._scores[scene_set] = [
                score for where, results in zip(self.frames(scene_set), self.results(scene_set), strict=True)
                for score in judge_frame(where, {PRODUCT: fixed(results)} | methods)]
        return self._scores[scene_set]


def by_label(result: PipelineResult) -> Results:
    """The objects of a result by their labels."""
    return {item.label: item for item in result.objects}


def asked_for(where: TrueFrame) -> Frame:
    """The frame with those instances alone that are part of the truth; all masks stay."""
    labels = {true.label for true in where.objects}
    return replace(where.frame, instances=tuple(i for i in where.frame.instances if i.label in labels))


def fixed(results: Results) -> Callable[[TrueFrame], dict[int, trimesh.Trimesh]]:
    """A method that gives results computed before."""
    return lambda where: {label: posed_mesh(item) for label, item in results.items()}


def paired(where: TrueFrame, results: Results) -> list[Pair]:
    """Every true object of a frame with its result."""
    return [Pair(where, true, results.get(true.label)) for true in where.objects]


def chamfer_mm(pair: Pair) -> float:
    """Chamfer distance of a found object."""
    to_true, to_predicted = surface_distances(posed_mesh(pair.item), pair.true.posed)
    return 1e3 * float(to_true.mean() + to_predicted.mean()) / 2


# ------------------------------------------------------------------------------------------------------ sections

def core(bench: Bench) -> dict[str, Any]:
    """Errors of product and baselines; of the product also by object and by visibility."""
    sections = {}
    for scene_set in SCENE_SETS:
        scores = bench.scores(scene_set)
        product = [score for score in scores if score.method == PRODUCT]
        sections[scene_set] = {
            "frames": len(bench.frames(scene_set)),
            "methods": report(scores),
            "by_object": {name: group_report([score for score in product if score.true.name == name])
                          for name in sorted({score.true.name for score in product})},
            "by_visibility": {f"{low:.0%} to {high:.0%}": group_report(scores_in(product, low, high))
                              for low, high in zip(VISIBILITY_STEPS, VISIBILITY_STEPS[1:], strict=False)
                              if scores_in(product, low, high)},
        }
    return sections


def scores_in(scores: Sequence[Score], low: float, high: float) -> list[Score]:
    """Scores of objects with a visible fraction above `low` and up to `high`."""
    return [score for score in scores if low < score.true.visible_fraction <= high]


def oracle(bench: Bench) -> dict[str, Any]:
    """Errors of the upper bounds."""
    return {scene_set: report([score for where in bench.frames(scene_set)
                               for score in judge_frame(where, UPPER_BOUNDS)]) for scene_set in SCENE_SETS}


def noise(bench: Bench) -> dict[str, Any]:
    """Errors of the product at every other level of sensor noise."""
    return {scene_set: {level: group_report([
        score for where in bench.frames(scene_set, level)
        for score in judge_frame(where, {PRODUCT: fixed(bench.reconstruct(asked_for(where)))})])
        for level in ("none", "heavy")} for scene_set in SCENE_SETS}


def protocol(bench: Bench) -> dict[str, Any]:
    """Means of SAM 3D's protocol, product and extruded hull."""
    return {scene_set: {method: normalised_means([
        score for score in bench.scores(scene_set) if score.method == method])
        for method in (PRODUCT, *FEW_BASELINES)} for scene_set in SCENE_SETS}


def robustness(bench: Bench) -> dict[str, Any]:
    """Chamfer distance on `easy` with the input spoiled, over that of the same objects with the input as it is."""
    clean = bench.pairs("easy")
    before = [chamfer_mm(pair) if pair.item else np.nan for pair in clean]
    return {name: ratio_report(before, [
        pair for where in bench.frames("easy") for pair in paired(where, bench.reconstruct(change(asked_for(where))))])
        for name, change in PERTURBATIONS.items()}


def ratio_report(before: Sequence[float], after: Sequence[Pair]) -> dict[str, Any]:
    """Mean chamfer distances before and after a change, over the objects found both times; their ratio, that without
    the unsound objects (frames.UNSOUND), and the median of the objects' own ratios.

    before: mm per object, NaN where it was not found; figures of no object are None
    """
    found = [(old, chamfer_mm(pair), pair.true.name) for old, pair in zip(before, after, strict=True)
             if pair.item and not np.isnan(old)]
    both, sound = (np.array([(old, new) for old, new, name in found if name not in left_out]).reshape(-1, 2)
                   for left_out in ((), UNSOUND))
    before_mm, after_mm = both.mean(axis=0).tolist() if len(both) else (None, None)
    return {"objects": len(after), "found": sum(pair.item is not None for pair in after), "compared": len(both),
            "before_mm": before_mm, "after_mm": after_mm, "ratio": after_mm / before_mm if len(both) else None,
            "sound_ratio": float(np.divide(*sound.mean(axis=0)[::-1])) if len(sound) else None,
            "median_ratio": float(np.median(both[:, 1] / both[:, 0])) if len(both) else None}


def no_depth(bench: Bench) -> dict[str, Any]:
    """`easy` from colour and mask alone.

    with_depth: vIoU after similarity alignment of the result from depth, for comparison; unknown_scale: the same
    without depth, and unaligned errors; support_plane: with camera pose and table
    height known, errors and the size error, that of the bounding box's diagonal
    """
    def scored(change: Callable[[TrueFrame], Frame]) -> tuple[dict[str, Any], list[Score]]:
        scores = [score for where in bench.frames("easy")
                  for score in judge_frame(where, {PRODUCT: fixed(bench.reconstruct(change(where)))})]
        return group_report(scores), [score for score in scores if score.mesh is not None]

    unknown, found = scored(lambda where: replace(asked_for(where), depth=None))
    unknown["aligned_volume_iou"] = aligned_volume_iou((score.mesh, score.true.posed) for score in found)
    plane, found = scored(lambda where: replace(with_gravity(where), depth=None))
    plane["size_error_median"] = float(np.median([size_error(score) for score in found])) if found else None
    with_depth = aligned_volume_iou((posed_mesh(p.item), p.true.posed) for p in bench.pairs("easy") if p.item)
    return {"with_depth": {"aligned_volume_iou": with_depth}, "unknown_scale": unknown, "support_plane": plane}


def aligned_volume_iou(meshes: Iterable[tuple[trimesh.Trimesh, trimesh.Trimesh]]) -> float | None:
    """Mean vIoU of (result, truth) after similarity alignment; None without any."""
    ious = [volume_iou(mesh.copy().apply_transform(similarity(mesh, true)), true) for mesh, true in meshes]
    return float(np.mean(ious)) if ious else None


def with_gravity(where: TrueFrame) -> Frame:
    """The frame with what TF tells: the camera's pose and the height of the table."""
    return replace(asked_for(where), world_from_camera=where.world_from_camera, support_height=where.support_height)


def size_error(score: Score) -> float:
    """Relative error of the bounding box's diagonal."""
    return abs(float(np.linalg.norm(score.mesh.extents) / np.linalg.norm(score.true.posed.extents)) - 1)


def visibility(bench: Bench) -> dict[str, Any]:
    """Errors on all objects, in any view of any scene, of which 25 to 50 % are seen."""
    scores = []
    for scene_set in SCENE_SETS:
        for where in bench.frames(scene_set) + bench.other_views(scene_set):
            hidden = [true for true in where.objects if LOW_VISIBILITY[0] < true.visible_fraction <= LOW_VISIBILITY[1]]
            if hidden:
                where = replace(where, objects=hidden)
                scores += judge_frame(where, {PRODUCT: fixed(bench.reconstruct(asked_for(where)))} | {
                    name: BASELINES[name] for name in FEW_BASELINES})
    return {method: group_report([score for score in scores if score.method == method])
            for method in (PRODUCT, *FEW_BASELINES)}


def views(bench: Bench) -> dict[str, Any]:
    """Chamfer distance on `easy` with two and with four views fused, over that with one."""
    others = {where.name: where for where in bench.other_views("easy")}
    sections = {}
    for count in (2, 4):
        before, after = [], []
        for where, results in zip(bench.frames("easy"), bench.results("easy"), strict=True):
            seen = [others[f"{where.name}_{k}"] for k in range(1, count)]
            fusible = [true for true in where.objects
                       if all(any(o.label == true.label for o in other.objects) for other in seen)]
            if not fusible:
                continue
            where = replace(where, objects=fusible)
            earlier = {true.label: [Observation(other.frame, true.label, camera_from_observer(where, other))
                                    for other in seen] for true in fusible}
            before += [chamfer_mm(pair) if pair.item else np.nan for pair in paired(where, results)]
            after += paired(where, bench.reconstruct(asked_for(where), earlier=earlier))
        sections[f"{count} views"] = ratio_report(before, after)
    return sections


def camera_from_observer(where: TrueFrame, observer: TrueFrame) -> np.ndarray:
    """(4, 4): the observer's camera frame -> the camera frame of `where`, of one scene at rest."""
    return np.linalg.inv(where.world_from_camera) @ observer.world_from_camera


def colour(bench: Bench) -> dict[str, Any]:
    """Errors of the colours on unseen surface, mean over objects; a set of which none was found is left out."""
    models = {model.name: model for model in dev_models(bench.data)}
    sections = {}
    for scene_set in SCENE_SETS:
        clean = {where.name: where.frame for where in bench.frames(scene_set, "none")}
        rows = [asdict(colour_errors(pair.item, models[pair.true.name], pair.true.camera_from_object,
                                     pair.where.frame, clean[pair.where.name]))
                for pair in bench.pairs(scene_set) if pair.item]
        if not rows:
            continue
        means = {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}
        sections[scene_set] = means | {
            "objects": len(rows),
            "below_mean_colour": 1 - means["unseen"] / means["mean_colour"],
            "below_mean_colour_relit": 1 - means["unseen_relit"] / means["mean_colour_relit"],
        }
    return sections


def uncertainty(bench: Bench) -> dict[str, Any]:
    """Reliability of vertex_std over the vertices of all objects; a set of which none was found is left out."""
    sections = {}
    for scene_set in SCENE_SETS:
        samples = [vertex_errors(pair.item, pair.true.posed) for pair in bench.pairs(scene_set) if pair.item]
        if not samples:
            continue
        within = [reliability(std, error)["half_ratio"] for std, error in samples]
        sections[scene_set] = reliability(*(np.concatenate(part) for part in zip(*samples, strict=True))) | {
            "half_ratio_within_objects": float(np.median(within))}
    return sections


def ablation(bench: Bench) -> dict[str, Any]:
    """Chamfer distance on `easy` without symmetry, or with a part of the input taken away, over that with all of it."""
    before = [chamfer_mm(pair) if pair.item else np.nan for pair in bench.pairs("easy")]

    def ratio(run: Callable[[TrueFrame], Results]) -> dict[str, Any]:
        return ratio_report(before, [pair for where in bench.frames("easy") for pair in paired(where, run(where))])

    def alone(where: TrueFrame) -> Results:
        single = (bench.reconstruct(own_pixels_only(where.frame, true.label)) for true in where.objects)
        return {label: item for results in single for label, item in results.items()}

    as_told = bench.pipeline.variant(symmetry=False)
    return {
        "symmetry off": ratio(lambda where: by_label(reconstruct(as_told, asked_for(where)))),
        "colour off": ratio(lambda where: bench.reconstruct(without_colour(asked_for(where)))),
        "own pixels only": ratio(alone),
    }


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    section.__name__: section for section in (core, oracle, noise, protocol, robustness, no_depth, visibility, views,
                                              colour, uncertainty, ablation)}
