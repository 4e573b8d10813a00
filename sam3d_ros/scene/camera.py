"""The camera's motion between two images, estimated from all known objects together, where TF does not give it."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .motion import diagonal
from .registration import LEAST_ERROR, SCALE_END, SCALE_STEP, accumulate, turned
from .shape import Shape

_ITERATIONS = 10
_SCALE_START = 0.03
_LIKELY = (0.05, 0.1)     # metres, radians from image to image, 1 sigma


def camera_motion(seen: Sequence[tuple[Shape, np.ndarray, np.ndarray]]) -> np.ndarray:
    """(4, 4) from the camera frame of the last image to that of the present one.

    seen: objects that the present image shows: shape, camera_from_object (4, 4) in the last image, and depth readings
    (N, 3) in the present camera frame, metres.  Objects that moved by themselves count little as long as they are few.
    """
    present_from_last = np.eye(4)
    prior = np.linalg.inv(diagonal(_LIKELY))
    scale = _SCALE_START
    for _ in range(_ITERATIONS):
        hessian, gradient = prior.copy(), np.zeros(6)
        for shape, camera_from_object, points in seen:
            own, pull = np.zeros((6, 6)), np.zeros(6)
            pose = present_from_last @ camera_from_object
            weight, squares, _ = accumulate(shape.distance, shape.origin, shape.cell, points, pose, scale, own, pull)
            if weight < 1:
                continue
            # From motion about the object's origin to motion about the camera's.
            lever = np.eye(6)
            x, y, z = pose[:3, 3]
            lever[:3, 3:] = [[0, z, -y], [-z, 0, x], [y, -x, 0]]
            variance = squares / weight + LEAST_ERROR ** 2
            hessian += lever.T @ own @ lever / variance
            gradient += lever.T @ pull / variance
        step = np.linalg.solve(hessian, gradient)
        change = np.eye(4)
        change[:3, :3] = turned(np.eye(3), step[3], step[4], step[5])
        change[:3, 3] = step[:3]
        present_from_last = change @ present_from_last
        scale = max(SCALE_END, scale * SCALE_STEP)
    return present_from_last
