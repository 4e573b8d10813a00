"""The belief about one pose over time: a Kalman filter whose measurements are registrations.

Poses and covariances are in the scene frame: order x, y, z (m), rotation about the scene's x, y, z through the object's
origin (rad).
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .registration import Registration, rotation_vector, turned

# Random walk of an object, 1 sigma after a second: at rest, and while something moves it.
REST = (0.0005, 0.003)            # metres, radians
CARRIED = (0.002, 0.01)           # at rest, where the camera's own motion is an estimate
MOVED = (0.12, 0.3)
# How sure the pose is when the mesh was made: the object frame is defined by it, so only noise is left.
_FIRST = (0.0005, 0.003)
# Beyond this the systematic error of a registration says nothing any more.
_MOST_BIAS = (0.03, 0.5)


@dataclass(frozen=True)
class Belief:
    """Pose of an object and how sure it is.

    scene_from_object: (4, 4); noise: (6, 6) covariance from what new images average out; adopted: (6, 6) share of the
    registrations' systematic error that the pose has taken over; bias: (6, 6) covariance of that error in the last one
    """

    scene_from_object: np.ndarray
    noise: np.ndarray
    adopted: np.ndarray
    bias: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """(6, 6): noise and systematic error together."""
        return self.noise + self.adopted @ self.bias @ self.adopted.T


def diagonal(sigmas: tuple[float, float]) -> np.ndarray:
    """(6, 6) covariance of a position and a rotation with these standard deviations."""
    return np.diag(np.repeat(np.square(sigmas), 3))


def first_belief(scene_from_object: np.ndarray) -> Belief:
    """Of an object whose mesh was just made, at scene_from_object (4, 4)."""
    return Belief(scene_from_object, diagonal(_FIRST), np.zeros((6, 6)), np.zeros((6, 6)))


def predicted(belief: Belief, seconds: float, walk: tuple[float, float]) -> Belief:
    """After some time without a measurement; walk: 1 sigma after a second, metres and radians."""
    return Belief(belief.scene_from_object, belief.noise + diagonal(walk) * seconds, belief.adopted, belief.bias)


def rotated(matrix: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """(6, 6) covariance or information in other axes; rotation: (3, 3) or the pose of the old axes in the new."""
    both = np.kron(np.eye(2), rotation[:3, :3])
    return both @ matrix @ both.T


def difference(pose: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(6,) from `reference` to `pose`, (4, 4) each: shift of the origin, and rotation vector."""
    turn = rotation_vector(np.ascontiguousarray(pose[:3, :3] @ reference[:3, :3].T))
    return np.concatenate([pose[:3, 3] - reference[:3, 3], turn])


def shifted(pose: np.ndarray, step: np.ndarray) -> np.ndarray:
    """`pose` moved by `step` (6,), the inverse of `difference`."""
    moved = pose.copy()
    moved[:3, :3] = turned(np.ascontiguousarray(pose[:3, :3]), *step[3:])
    moved[:3, 3] += step[:3]
    return moved


def surprise(before: Belief, measured: Registration, scene_from_camera: np.ndarray) -> float:
    """Normalised innovation squared: 6 on average where the object did what `before` says, large where it moved.

    measured: registration whose prior let the object move freely; scene_from_camera: (4, 4) of its image
    """
    innovation = difference(scene_from_camera @ measured.camera_from_object, before.scene_from_object)
    spread = before.covariance + _error(measured.systematic, scene_from_camera)
    # Directions that the readings do not see are no evidence: there the measurement only repeats its prior.
    information = rotated(measured.white, scene_from_camera)
    seen = np.linalg.solve(information + np.linalg.inv(diagonal(_MOST_BIAS)), information)
    innovation = seen @ innovation
    return float(innovation @ np.linalg.solve(spread, innovation))


def updated(before: Belief, measured: Registration, scene_from_camera: np.ndarray) -> Belief:
    """With a registration whose prior was `before` (its pose is the fused one already); scene_from_camera: (4, 4) of
    its image."""
    information = rotated(measured.white, scene_from_camera)
    noise = np.linalg.inv(np.linalg.inv(before.noise) + information)
    gain = noise @ information
    adopted = (np.eye(6) - gain) @ before.adopted + gain
    return Belief(scene_from_camera @ measured.camera_from_object, (noise + noise.T) / 2, adopted,
                  _error(measured.systematic, scene_from_camera))


def _error(information: np.ndarray, scene_from_camera: np.ndarray) -> np.ndarray:
    """Covariance in the scene of an information in the camera, bounded where it says nothing."""
    return np.linalg.inv(rotated(information, scene_from_camera) + np.linalg.inv(diagonal(_MOST_BIAS)))
