"""Instance masks from depth alone: what stands on the main plane in view, split by gaps.

For those who have no detector yet. It needs a table, floor or shelf in view and objects that do not touch; it knows no
classes. Everything is deterministic: the same depth image gives the same labels.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, cKDTree

from .faults import Fault, FaultCode
from .frame import Frame, Instance, Intrinsics, check_frame
from .gaps import without_gaps
from .masks import label_areas
from .plane import fit_support_plane, range_factor

_FLYING_NEIGHBOURS = 3            # of 8 that must lie at a pixel's own depth
_SUPPORT_MARGIN = 0.02            # metres by which an object may stick out over the plane's visible part
_CORE_NEIGHBOURS = 4              # occupied voxels within `gap` of one that belongs to a cluster
_CLOSING = 4                      # pixels; half the width of the gaps in a mask that are bridged
MAX_OBJECTS = 2**16 - 1           # what the 16UC1 segmentation image can hold


@dataclass(frozen=True)
class TabletopConfig:
    """Lengths are metres.

    min_height, max_height: above the plane, what counts as part of an object; min_height grows with the square of the
        distance beyond 1 m, as the error of a stereo camera does
    plane_tolerance: distance from the plane, at 1 m, within which a pixel belongs to it
    max_distance: depth readings farther than this are ignored
    voxel: edge of the grid in which points are clustered
    gap: objects closer than this become one
    min_object_height: the highest point of an object must stand out by this
    min_pixels, max_size: smaller or larger clusters are dropped (max_size: diagonal of the bounding box)
    """

    min_height: float = 0.005
    max_height: float = 0.5
    plane_tolerance: float = 0.006
    max_distance: float = 1.5
    voxel: float = 0.005
    gap: float = 0.012
    min_object_height: float = 0.012
    min_pixels: int = 300
    max_size: float = 0.6


def segment_tabletop(depth: np.ndarray, intrinsics: Intrinsics,
                     config: TabletopConfig = TabletopConfig()) -> np.ndarray:
    """Instance labels of the objects on the main plane in view.

    depth: (H, W) float32, metres along the optical axis, 0 (or not a number) = no reading
    Returns (H, W) uint16, 0 = background, 1 = the object with most pixels, 2 = the next, ...

    Raises Fault: DEPTH_EMPTY without a reading within max_distance, SUPPORT_PLANE_NOT_FOUND.
    """
    depth = without_gaps(np.where((depth > 0) & (depth < config.max_distance), depth, np.float32(0)))
    if not depth.any():
        raise Fault(FaultCode.DEPTH_EMPTY, f"no reading within {config.max_distance:g} m")
    points = _points(depth, intrinsics)
    solid = (depth > 0) & ~_flying_pixels(depth)
    plane = fit_support_plane(points[solid], config.plane_tolerance)
    heights = points @ plane[:3] + plane[3]
    above = (heights > config.min_height * range_factor(depth)) & (heights < config.max_height)
    rows, columns = np.nonzero(solid & above)
    inside = _over_support(points[rows, columns], points[solid], plane, config.plane_tolerance)
    rows, columns = rows[inside], columns[inside]
    clusters = _cluster(points[rows, columns], config.voxel, config.gap)
    labels = np.zeros(depth.shape, np.uint16)
    for label, members in enumerate(_objects(clusters, points[rows, columns], heights[rows, columns], config), 1):
        _paint(labels, label, rows[members], columns[members])
    return labels


def with_tabletop_masks(frame: Frame) -> Frame:
    """A frame with depth, and with the masks of `segment_tabletop` in place of its own.

    Raises Fault: those of check_frame, DEPTH_EMPTY without a reading near enough, SUPPORT_PLANE_NOT_FOUND.
    """
    check_frame(frame)          # a wrong unit or camera is no matter of the masks
    labels = segment_tabletop(frame.depth, frame.intrinsics).astype(np.int32)
    return replace(frame, labels=labels, instances=tuple(Instance(label) for label in label_areas(labels)))


def _points(depth: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """(H, W, 3) float32 camera-frame points of every pixel, the origin where there is no reading."""
    height, width = depth.shape
    x = (np.arange(width, dtype=np.float32) - np.float32(intrinsics.cx)) / np.float32(intrinsics.fx)
    y = (np.arange(height, dtype=np.float32) - np.float32(intrinsics.cy)) / np.float32(intrinsics.fy)
    return np.stack([depth * x, depth * y[:, None], depth], axis=-1)


def _flying_pixels(depth: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels with too few neighbours at their own depth, such as a mix of near and far at an edge."""
    height, width = depth.shape
    padded = np.pad(depth, 1)
    tolerance = 0.01 * depth                      # between neighbouring pixels, a surface seen at 80 degrees
    near = np.zeros(depth.shape, np.uint8)
    for row in range(3):
        for column in range(3):
            if (row, column) != (1, 1):
                near += np.abs(padded[row:row + height, column:column + width] - depth) < tolerance
    return near < _FLYING_NEIGHBOURS


def _over_support(candidates: np.ndarray, scene: np.ndarray, plane: np.ndarray, tolerance: float) -> np.ndarray:
    """(N,) bool: which candidates (N, 3) stand over the convex hull of the scene's (M, 3) points in the plane; the
    room behind a table is above its plane too."""
    axes = np.linalg.svd(plane[None, :3])[2][1:].T
    step = max(1, len(scene) // 20000)
    sample = scene[::step]
    support = sample[np.abs(sample @ plane[:3] + plane[3]) < tolerance * range_factor(sample[:, 2])] @ axes
    edges = ConvexHull(support).equations.astype(np.float32)      # outward normal and offset of each edge
    return (candidates @ axes @ edges[:, :2].T + edges[:, 2]).max(axis=1) < _SUPPORT_MARGIN


def _cluster(points: np.ndarray, voxel: float, gap: float) -> np.ndarray:
    """Cluster number of each of (N, 3) points, -1 for stray ones: DBSCAN on the occupied voxels."""
    cells = np.floor(points / voxel).astype(np.int64) + 2**20
    keys, cell_of_point = np.unique((cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2], return_inverse=True)
    centres = np.stack([keys >> 42, (keys >> 21) & (2**21 - 1), keys & (2**21 - 1)], axis=1) * voxel
    pairs = cKDTree(centres).query_pairs(gap, output_type="ndarray")
    core = np.bincount(pairs.ravel(), minlength=len(keys)) >= _CORE_NEIGHBOURS
    pairs = pairs[core[pairs].all(axis=1)]
    links = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(len(keys), len(keys)))
    cluster_of_cell = connected_components(links, directed=False)[1]
    return np.where(core, cluster_of_cell, -1)[cell_of_point]


def _objects(clusters: np.ndarray, points: np.ndarray, heights: np.ndarray, config: TabletopConfig) -> list[np.ndarray]:
    """Indices of the points of each cluster that can be an object, the one with most points first."""
    order = np.argsort(clusters, kind="stable")
    order = order[np.searchsorted(clusters[order], 0):]           # without the stray points
    groups = np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1)
    kept = [group for group in groups if len(group) >= config.min_pixels
            and heights[group].max() >= config.min_object_height
            and np.linalg.norm(np.ptp(points[group], axis=0)) <= config.max_size]
    return sorted(kept, key=len, reverse=True)[:MAX_OBJECTS]


def _paint(labels: np.ndarray, label: int, rows: np.ndarray, columns: np.ndarray) -> None:
    """Write an object's pixels into `labels`, and into the gaps and holes in it, where the camera had no reading or
    a thin bottom lies in the plane."""
    top, left = rows.min() - _CLOSING, columns.min() - _CLOSING
    mask = np.zeros((rows.max() - top + _CLOSING + 1, columns.max() - left + _CLOSING + 1), bool)
    mask[rows - top, columns - left] = True
    closed = ndimage.binary_closing(mask, iterations=_CLOSING)
    filled_rows, filled_columns = np.nonzero(ndimage.binary_fill_holes(closed))
    free = labels[filled_rows + top, filled_columns + left] == 0
    labels[filled_rows[free] + top, filled_columns[free] + left] = label
