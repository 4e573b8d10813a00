"""A complete set of messages, decoded, with the place of its camera."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from std_msgs.msg import Header

from ..perception.faults import Fault, FaultCode
from ..perception.frame import Frame, check_frame
from ..perception.masks import Segmentation
from ..scene.track import TrackedObject
from .frames import decode_frame
from .images import stamp_message
from .messages import PlacedObject
from .parameters import Settings
from .synchroniser import Match
from .transforms import Transforms


@dataclass(frozen=True)
class DecodedSet:
    """An image with its depth and masks: what is needed to publish objects that are given in its camera frame.

    target_from_camera: (4, 4), the identity where there is no target_frame; settings: that it was decoded with;
    started: when that began (monotonic, s); is_ahead: whether its masks have not come yet, so that `frame` has none
    """

    match: Match
    frame: Frame
    target_from_camera: np.ndarray
    settings: Settings
    started: float
    is_ahead: bool

    def placed(self, objects: Sequence[TrackedObject]) -> tuple[list[PlacedObject], Header]:
        """Objects given in its camera frame, and the header of the frame that they are published in."""
        frame_id = self.settings.target_frame or self.frame.frame_id
        return ([PlacedObject(item, self.target_from_camera) for item in objects],
                Header(stamp=stamp_message(self.frame.stamp_ns), frame_id=frame_id))


def decode_set(match: Match, settings: Settings, transforms: Transforms | None,
               find_masks: Callable[[Match, Settings], Segmentation],
               is_ahead: bool = False) -> tuple[DecodedSet, tuple[Fault, ...]]:
    """Decode a set, for which the camera's transform is waited for.  Returns it, and warnings about it.

    find_masks: gives the masks of the set; may raise Fault.
    Raises Fault: those of `decode_frame`, `target_from_camera` and `check_frame`.
    """
    started = time.monotonic()
    frame = decode_frame(match, settings)
    pose = target_from_camera(frame, settings, transforms)
    gravity_known = settings.target_frame not in ("", frame.frame_id)
    segmentation = find_masks(match, settings)
    frame = replace(frame, world_from_camera=pose if gravity_known else None, labels=segmentation.labels,
                    instances=segmentation.instances)
    check_frame(frame)
    nameless = () if frame.frame_id else (Fault(FaultCode.FRAME_ID_MISSING),)
    return DecodedSet(match, frame, pose, settings, started, is_ahead), (*nameless, *segmentation.warnings)


def target_from_camera(frame: Frame, settings: Settings, transforms: Transforms | None) -> np.ndarray:
    """(4, 4) at the image's stamp; the identity without a target_frame.

    Raises Fault TF_*, PARAMETER_INVALID, FRAME_ID_MISSING.
    """
    if len(settings.camera_namespaces) > 1 and settings.target_frame == frame.frame_id:
        raise Fault(FaultCode.PARAMETER_INVALID, f"parameter target_frame: '{frame.frame_id}' is the frame of a "
                                                 "camera, and several need one whose +Z points up")
    if settings.target_frame in ("", frame.frame_id):
        return np.eye(4)
    if not frame.frame_id:
        raise Fault(FaultCode.FRAME_ID_MISSING)
    if transforms is None:
        raise Fault(FaultCode.TF_MISSING, "tf2_ros is not installed: leave target_frame empty")
    return transforms.target_from_camera(settings.target_frame, frame.frame_id, frame.stamp_ns, settings.tf_timeout)
