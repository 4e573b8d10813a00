"""Errors of the input, one at a time and of a stated size, to measure how much worse the result gets.

Each takes a frame with all its objects and returns another; depth in metres with 0 = no reading, lengths in pixels.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import ndimage

from sam3d_ros.perception.frame import Frame
from sam3d_ros.synth.sensor import EDGE_STEP

HOLE_SHARE = 0.2            # of each object's depth readings
HOLE_RADIUS = 4.0           # 1 sigma of the blobs' outline
MASK_STEP = 4


def with_holes(frame: Frame, share: float = HOLE_SHARE, seed: int = 0) -> Frame:
    """Blobs without depth over `share` of every object's readings."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=frame.depth.shape), HOLE_RADIUS)
    depth = frame.depth.copy()
    for instance in frame.instances:
        own = (frame.labels == instance.label) & (frame.depth > 0)
        if own.any():
            depth[own & (field > np.quantile(field[own], 1 - share))] = 0
    return replace(frame, depth=depth)


def with_blank_edges(frame: Frame) -> Frame:
    """No depth at the pixels beside a step of EDGE_STEP or more between neighbouring readings."""
    far = ndimage.maximum_filter(frame.depth, 3)
    near = ndimage.minimum_filter(np.where(frame.depth > 0, frame.depth, np.inf), 3)
    return replace(frame, depth=np.where(far - near > EDGE_STEP, 0, frame.depth).astype(np.float32))


def with_eroded_masks(frame: Frame, pixels: int = MASK_STEP) -> Frame:
    """Every mask without what lies nearer than `pixels` to its outline."""
    labels = np.zeros_like(frame.labels)
    for instance in frame.instances:
        own = frame.labels == instance.label
        labels[ndimage.distance_transform_edt(np.pad(own, 1))[1:-1, 1:-1] > pixels] = instance.label
    return replace(frame, labels=labels)


def with_dilated_masks(frame: Frame, pixels: int = MASK_STEP) -> Frame:
    """Every mask grown by `pixels` onto the background; between two objects the nearer one wins."""
    distance, nearest = ndimage.distance_transform_edt(frame.labels == 0, return_indices=True)
    return replace(frame, labels=np.where(distance <= pixels, frame.labels[tuple(nearest)], 0))


def without_colour(frame: Frame) -> Frame:
    """A grey image."""
    return replace(frame, colour=np.full_like(frame.colour, 128))


def own_pixels_only(frame: Frame, label: int) -> Frame:
    """Depth and mask of one object alone: nothing tells which space around it is free, nor what it stands on."""
    own = frame.labels == label
    return replace(frame, depth=np.where(own, frame.depth, 0).astype(np.float32), labels=np.where(own, label, 0),
                   instances=tuple(instance for instance in frame.instances if instance.label == label))


PERTURBATIONS: dict[str, Callable[[Frame], Frame]] = {
    "20 % of the depth missing in blobs": with_holes,
    "depth discontinuities blanked": with_blank_edges,
    "mask eroded by 4 pixels": with_eroded_masks,
    "mask dilated by 4 pixels": with_dilated_masks,
}
