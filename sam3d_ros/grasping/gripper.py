"""A parallel gripper as boxes.

Grasp frame: origin in the middle between the two fingertips, +Z the approach direction, from the palm to the object,
and +Y along which the fingers close. The fingers lie behind the origin, at z from -finger_length to 0, the palm
behind them.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ParallelGripper:
    """Metres.

    max_opening: between the fingers; finger_length: along z; finger_width: along x; finger_thickness: along y
    palm: (3,) size along x, y, z
    """

    max_opening: float
    finger_length: float
    finger_width: float
    finger_thickness: float
    palm: tuple[float, float, float]

    def boxes(self, opening: float, retreat: float = 0.0) -> np.ndarray:
        """Low and high corners, (3, 2, 3), grasp frame, of both fingers and the palm, at this opening.

        retreat: the boxes reach this much farther back, and so hold all places of the hand on a straight way in.
        """
        x, inner = self.finger_width / 2, opening / 2
        outer, back = inner + self.finger_thickness, self.finger_length
        palm_x, palm_y, palm_z = self.palm
        return np.array([
            [[-x, inner, -back - retreat], [x, outer, 0]],
            [[-x, -outer, -back - retreat], [x, -inner, 0]],
            [[-palm_x / 2, -palm_y / 2, -back - palm_z - retreat], [palm_x / 2, palm_y / 2, -back]],
        ])


# About the hand of a Franka arm.
FRANKA = ParallelGripper(max_opening=0.08, finger_length=0.045, finger_width=0.02, finger_thickness=0.01,
                         palm=(0.05, 0.2, 0.06))
