"""From a matched set of messages to a Frame."""
from __future__ import annotations

import numpy as np
from sensor_msgs.msg import CameraInfo, Image

from ..perception.faults import Fault, FaultCode
from ..perception.frame import Frame
from ..perception.gaps import without_gaps
from ..perception.masks import Segmentation
from .images import decode_camera_info, decode_colour, decode_depth
from .optional import optional
from .parameters import Settings
from .segmentation import decode_segmentation, segmentation_type
from .synchroniser import CAMERA_INFO, DEPTH, DETECTIONS, IMAGE, MASKS, Match


def input_types(settings: Settings, with_detections: bool) -> dict[str, type]:
    """Streams to be read, and their message classes.

    with_detections: read `detections` beside the masks; they are read in any case where mask_format is boxes.
    Raises Fault PARAMETER_INVALID if a message package is not installed.
    """
    types: dict[str, type] = {IMAGE: Image, CAMERA_INFO: CameraInfo}
    if settings.use_depth:
        types[DEPTH] = Image
    boxes_alone = settings.mask_format == "boxes"
    if not boxes_alone:
        types[MASKS] = segmentation_type(settings.mask_format)
    if boxes_alone or with_detections:
        vision_msgs = optional("vision_msgs.msg")
        if vision_msgs is None:
            wanted = "parameter mask_format: 'boxes' needs" if boxes_alone else "detections need"
            raise Fault(FaultCode.PARAMETER_INVALID, f"{wanted} the package vision_msgs")
        types[DETECTIONS] = vision_msgs.Detection2DArray
    return types


def decode_frame(match: Match, settings: Settings) -> Frame:
    """Frame without masks (labels all 0, no instances) of a matched set.

    Raises Fault IMAGE_*, CAMERA_INFO_*, DEPTH_*.
    """
    image = match.messages[IMAGE]
    colour = decode_colour(image)
    intrinsics = decode_camera_info(match.messages[CAMERA_INFO], image.width, image.height, settings.image_is_rectified)
    depth = None
    if DEPTH in match.messages:
        message = match.messages[DEPTH]
        if (message.width, message.height) != (image.width, image.height):
            raise Fault(FaultCode.DEPTH_SIZE_MISMATCH,
                        f"depth {message.width} x {message.height}, image {image.width} x {image.height}")
        if message.header.frame_id != image.header.frame_id:
            raise Fault(FaultCode.DEPTH_FRAME_MISMATCH,
                        f"depth '{message.header.frame_id}', image '{image.header.frame_id}'")
        depth = without_gaps(decode_depth(message))
    return Frame(colour, depth, np.zeros(colour.shape[:2], np.int32), intrinsics, stamp_ns=match.stamp_ns,
                 frame_id=image.header.frame_id)


def decode_masks(match: Match, settings: Settings) -> Segmentation:
    """Masks of a matched set.

    Raises Fault MASK_*.
    """
    image = match.messages[IMAGE]
    return decode_segmentation(match.messages.get(MASKS), match.messages.get(DETECTIONS), image.height, image.width,
                               settings)


def decode_masks_or_none(match: Match, settings: Settings) -> Segmentation:
    """Masks of a matched set.  That there are none is a result, too: an empty one, with the warning MASK_EMPTY, or
    MASK_INVALID if those that there were are broken.

    Raises Fault MASK_* but for these.
    """
    try:
        return decode_masks(match, settings)
    except Fault as fault:
        if fault.code not in (FaultCode.MASK_EMPTY, FaultCode.MASK_INVALID):
            raise
        return _no_masks(match, fault.without_traceback())


def masks_to_come(match: Match, settings: Settings) -> Segmentation:
    """No masks, of a set whose masks have not come yet."""
    return _no_masks(match)


def _no_masks(match: Match, *warnings: Fault) -> Segmentation:
    image = match.messages[IMAGE]
    return Segmentation(np.zeros((image.height, image.width), np.int32), (), warnings)


def type_name(message_class: type) -> str:
    """Name of a message class as on a topic or in a bag, such as sensor_msgs/msg/Image."""
    return f"{message_class.__module__.split('.')[0]}/msg/{message_class.__name__}"


def message_bytes(message: object) -> int:
    """Memory of a message's bulk data, that of all its tensors if it is a list of them; small messages count as
    nothing."""
    return sum(len(getattr(part, "data", ())) for part in getattr(message, "tensors", (message,)))
