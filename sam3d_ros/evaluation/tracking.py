"""`sam3d bench track`: the tracker on a simulated camera that moves around a table, against the true motion.

What is compared is motion: where the true object would be if it had kept its place in the tracked frame since the
tracker first saw it, and where it really is. Shapes are judged elsewhere (`sam3d bench frames`).

Time is simulated, so that a busy machine changes no pose: a reconstruction takes effect RECONSTRUCTION_LAG after its
image. What an update costs is measured apart, alone and beside a reconstruction that runs all the time.
"""
from __future__ import annotations

import threading
import time
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from tqdm import tqdm

from ..perception.pipeline import Pipeline
from ..scene import rebuild
from ..scene.motion import difference, rotated
from ..scene.registration import turned
from ..scene.track import Presence, Rebuilt, Request, TrackedObject
from ..scene.tracker import Tracker
from ..synth.tabletop import PlacedObject
from .tracking_stage import CARRY, COVER_AT, COVER_SECONDS, FIRST_STAMP_NS, RATE, Disturbance, Moment, Stage

LEAST_SECONDS = 13.0              # of a run: what was covered has half a second left to be seen again
RECONSTRUCTION_LAG = 0.5          # seconds
RECONSTRUCTION_PERIOD = 0.5
SAME_SURFACE = 0.02               # of the diagonal: mean distance of a turned surface from itself, if it is symmetric
TIMED_UPDATES = 100
# Bars.
MOST_MM, MOST_DEGREES, LEAST_RATE, MOST_MM_CARRIED = 3.0, 2.0, 15.0, 10.0
LEAST_SEEN, LEAST_SEEN_CARRIED = 0.85, 0.9         # shares of images


@dataclass
class Record:
    """What happened to one true object: an entry for each image in which the tracker claims to see it.

    shown: how many images show it; seen: in how many of them the tracker claims to see it
    ids: of the tracks that claimed its masks; mm, degrees: errors, NaN degrees of a ball; nees: normalised error
    squared; seconds: of the image
    """

    shown: int = 0
    seen: int = 0
    ids: Counter = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    mm: list[float] = field(default_factory=list)
    degrees: list[float] = field(default_factory=list)
    nees: list[float] = field(default_factory=list)


class Judge:
    """Compares tracked objects with the truth, moment by moment.

    records, axes: true label -> its record, and its axes of symmetry as of `symmetry_axes`; switches: how often a track
    went over to another true object, or a true object to another track
    """

    def __init__(self, objects: tuple[PlacedObject, ...]):
        self.records = {o.label: Record() for o in objects}
        self.switches = 0
        self.axes = {o.label: symmetry_axes(o) for o in objects}
        self._centres = {o.label: o.shape.mesh.bounds.mean(axis=0) for o in objects}
        self._label_of: dict[str, int] = {}
        self._object_from_true: dict[str, np.ndarray] = {}

    def judge(self, tracker: Tracker, objects: list[TrackedObject], moment: Moment) -> None:
        """Add the errors of one moment, and which of the objects that it shows are seen."""
        label_of_number = {number: label for label, number in moment.numbers.items()}
        seen = set()
        for item in objects:
            if item.presence is not Presence.SEEN:
                continue
            if item.object.label:
                self._claim(item, label_of_number[item.object.label], moment)
            if item.id in self._label_of:
                self._compare(tracker, item, moment)
                seen.add(self._label_of[item.id])
        for label in moment.shown:
            self.records[label].shown += 1
            self.records[label].seen += label in seen

    def _claim(self, item: TrackedObject, label: int, moment: Moment) -> None:
        """Note that a track has the mask of a true object."""
        self.records[label].ids[item.id] += 1
        before = self._label_of.setdefault(item.id, label)
        if before != label or len(self.records[label].ids) > 1 and self.records[label].ids[item.id] == 1:
            self.switches += 1
        if item.id not in self._object_from_true:
            self._object_from_true[item.id] = np.linalg.inv(item.object.camera_from_object) \
                @ moment.camera_from_object[label]

    def _compare(self, tracker: Tracker, item: TrackedObject, moment: Moment) -> None:
        """Add the errors of a track against the motion of the object whose mask it had first."""
        label = self._label_of[item.id]
        record = self.records[label]
        true = moment.camera_from_object[label]
        found = item.object.camera_from_object @ self._object_from_true[item.id]
        centre = self._centres[label]
        shift = (found[:3, :3] - true[:3, :3]) @ centre + found[:3, 3] - true[:3, 3]
        record.seconds.append((moment.frame.stamp_ns - FIRST_STAMP_NS) / 1e9)
        record.mm.append(float(np.linalg.norm(shift)) * 1e3)
        record.degrees.append(float(np.rad2deg(turn_error(found, true, self.axes[label]))))
        if not len(self.axes[label]):
            should = true @ np.linalg.inv(self._object_from_true[item.id])
            error = difference(item.object.camera_from_object, should)
            scene_from_camera = tracker.scene_from_camera(moment.frame)
            covariance = rotated(tracker.tracks[item.id].belief.covariance, scene_from_camera.T[:3, :3])
            record.nees.append(float(error @ np.linalg.solve(covariance, error)))


def symmetry_axes(placed: PlacedObject) -> np.ndarray:
    """(A, 3) axes about which an object may be turned at will, in its frame: none, one, or three for a ball."""
    mesh = placed.shape.mesh
    points = mesh.sample(20000, seed=0) - mesh.bounds.mean(axis=0)
    tree = cKDTree(points)
    diagonal = float(np.linalg.norm(mesh.extents))
    axes = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2]

    def distance(axis: np.ndarray, angle: float) -> float:
        return float(tree.query(points[:1000] @ turned(np.eye(3), *(angle * axis)).T)[0].mean()) / diagonal
    return np.array([axis for axis in axes if max(distance(axis, angle) for angle in (0.6, 1.1)) < SAME_SURFACE])


def turn_error(found: np.ndarray, true: np.ndarray, axes: np.ndarray) -> float:
    """Radians between two poses (4, 4), but for turns about axes of symmetry (A, 3); NaN for a ball, which has none."""
    if len(axes) > 1:
        return float("nan")
    if len(axes) == 1:
        return float(np.arccos(np.clip((found[:3, :3] @ axes[0]) @ (true[:3, :3] @ axes[0]), -1, 1)))
    return float(np.linalg.norm(difference(found, true)[3:]))


def run(pipeline: Pipeline, stage: Stage, disturbance: Disturbance) -> dict[str, Any]:
    """One scene from beginning to end; its report."""
    stage.rewind()
    tracker, judge = Tracker(), Judge(stage.objects)
    pending: tuple[float, Request, list[Rebuilt], np.ndarray | None] | None = None
    next_request, rebuilt = 0.0, 0
    presence: Counter = Counter()
    update_ms: list[float] = []
    for index in tqdm(range(int(stage.seconds * RATE)), unit="image", disable=None):
        now = index / RATE
        moment = stage.moment(now, disturbance)
        started = time.thread_time()
        seen = tracker.update(moment.frame)
        update_ms.append(1e3 * (time.thread_time() - started))
        judge.judge(tracker, seen, moment)
        presence.update(item.presence.value for item in seen)
        if pending and now >= pending[0]:
            tracker.absorb(*pending[1:])
            pending = None
        if pending is None and now >= next_request and (asked := rebuild.request(tracker)):
            result = rebuild.run(pipeline, asked)
            pending = (now + RECONSTRUCTION_LAG, asked, rebuild.prepare(asked, result.objects), result.plane)
            next_request, rebuilt = now + RECONSTRUCTION_PERIOD, rebuilt + len(asked.frame.instances)
    return _report(judge, stage) | {
        "seed": stage.seed, "camera_pose_given": disturbance.world, "masks_dropped": disturbance.drop,
        "images": len(update_ms), "objects_reconstructed": rebuilt, "presence": dict(presence),
        "update_cpu_ms": _percentiles(update_ms),
        # Of a copy each: a second series of images would be older than the first.
        "update_ms": {"alone": _timed(deepcopy(tracker), moment, pipeline, busy=False),
                      "beside_reconstruction": _timed(deepcopy(tracker), moment, pipeline, busy=True)}}


def _report(judge: Judge, stage: Stage) -> dict[str, Any]:
    each = []
    start, end = CARRY[0] * stage.seconds, CARRY[1] * stage.seconds
    covered_end = COVER_AT * stage.seconds + COVER_SECONDS
    for placed in stage.objects:
        record = judge.records[placed.label]
        mm, degrees, times = (np.array(values) for values in (record.mm, record.degrees, record.seconds))
        entry = {"object": placed.shape.kind, "ids": len(record.ids), "images_seen": len(mm),
                 "images_shown": record.shown,
                 "seen_share": round(record.seen / record.shown, 3) if record.shown else None,
                 "symmetric_axes": len(judge.axes[placed.label]), "mm": _percentiles(mm),
                 "degrees": _percentiles(degrees), "nees": _percentiles(record.nees)}
        if placed.label == stage.carried:
            during = (times >= start) & (times <= end)
            entry["carried"] = {"seen_share": round(float(during.sum() / ((end - start) * RATE)), 3),
                                "mm": _percentiles(mm[during]), "degrees": _percentiles(degrees[during])}
        if placed.label == stage.covered:
            back = times[times >= covered_end]
            entry["covered"] = {"seen_again_after_s": round(float(back[0] - covered_end), 3) if len(back) else None}
        each.append(entry)
    records = judge.records.values()
    return {"id_switches": judge.switches, "mm": _percentiles([v for r in records for v in r.mm]),
            "degrees": _percentiles([v for r in records for v in r.degrees]),
            "nees": _percentiles([v for r in records for v in r.nees]), "each": each}


def _timed(tracker: Tracker, moment: Moment, pipeline: Pipeline, busy: bool) -> dict[str, float]:
    """Milliseconds of an update, by the wall clock, in images like that of a moment, which follow on it; busy: the
    pipeline runs in another thread all the time."""
    stop = threading.Event()

    def reconstruct() -> None:
        while not stop.is_set():
            pipeline.run(moment.frame)
    thread = threading.Thread(target=reconstruct)
    if busy:
        thread.start()
    times = []
    for index in range(1, TIMED_UPDATES + 1):
        frame = replace(moment.frame, stamp_ns=moment.frame.stamp_ns + int(index / RATE * 1e9))
        started = time.perf_counter()
        tracker.update(frame)
        times.append(1e3 * (time.perf_counter() - started))
        time.sleep(max(0.0, 1 / RATE - times[-1] / 1e3))
    stop.set()
    if busy:
        thread.join()
    return _percentiles(times)


def _percentiles(values: Any) -> dict[str, float]:
    """Of those values that are no NaN."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if not len(values):
        return {}
    p50, p95 = np.percentile(values, [50, 95])
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3), "mean": round(float(np.mean(values)), 3),
            "max": round(float(np.max(values)), 3), "count": len(values)}


def bars(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each bar's worst figure over the runs, and whether it is kept: not if nothing was seen in one of them."""
    def bar(value: float | None, limit: float, passed: bool) -> dict[str, Any]:
        return {"value": value, "limit": limit, "passed": bool(passed)}
    mm, degrees = (max((run[name]["p50"] for run in runs if run[name]), default=None) for name in ("mm", "degrees"))
    found = all(run["mm"] for run in runs)
    switches = sum(run["id_switches"] for run in runs)
    # By CPU time: what a busy machine's clock says is reported, but judges the machine.
    rate = 1e3 / max(run["update_cpu_ms"]["p95"] for run in runs)
    carried = [entry["carried"] for run in runs for entry in run["each"] if "carried" in entry]
    covered = [entry["covered"]["seen_again_after_s"] for run in runs for entry in run["each"] if "covered" in entry]
    worst = max((c["mm"]["p50"] for c in carried if c["mm"]), default=None)
    seen_carried = min(c["seen_share"] for c in carried)
    seen = min(entry["seen_share"] for run in runs for entry in run["each"] if entry["seen_share"] is not None)
    return {"median_mm": bar(mm, MOST_MM, found and mm <= MOST_MM),
            # None: of balls alone
            "median_degrees": bar(degrees, MOST_DEGREES, found and (degrees is None or degrees <= MOST_DEGREES)),
            "seen_share": bar(seen, LEAST_SEEN, seen >= LEAST_SEEN),
            "id_switches": bar(switches, 0, switches == 0),
            "updates_per_cpu_second": bar(round(rate, 1), LEAST_RATE, rate >= LEAST_RATE),
            "carried_median_mm": bar(worst, MOST_MM_CARRIED, worst is not None and worst <= MOST_MM_CARRIED),
            "carried_seen_share": bar(seen_carried, LEAST_SEEN_CARRIED, seen_carried >= LEAST_SEEN_CARRIED),
            "covered_seen_again_s": bar(max((c for c in covered if c is not None), default=None), 0.5,
                                        all(c is not None and c <= 0.5 for c in covered))}


def table(runs: list[dict[str, Any]]) -> str:
    """Runs and their objects as text."""
    lines = [f"{'seed':>4} {'TF':3}{'object':16}{'ids':>4}{'images':>8}{'seen':>6}{'mm p50':>8}{'p95':>7}{'deg p50':>9}"
             f"{'p95':>7}{'NEES p50':>10}"]
    for report in runs:
        for entry in report["each"]:
            mm, degrees, nees = (entry[name] for name in ("mm", "degrees", "nees"))
            figures = f"{mm['p50']:8.2f}{mm['p95']:7.2f}" if mm else f"{'':15}"
            figures += f"{degrees['p50']:9.2f}{degrees['p95']:7.2f}" if degrees else f"{'':16}"
            seen = "" if entry["seen_share"] is None else f"{entry['seen_share']:.0%}"
            given = "yes" if report["camera_pose_given"] else "no"
            lines.append(f"{report['seed']:4} {given:3}{entry['object']:16}{entry['ids']:4}{entry['images_seen']:8}"
                         f"{seen:>6}{figures}" + (f"{nees['p50']:10.1f}" if nees else ""))
    return "\n".join(lines)
