"""Named faults: every way in which input or set-up can be wrong, with what to do about it.

A fault's name is what a user sees in /diagnostics, in the log and on the command line, and what the troubleshooting
page is sorted by.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum


class FaultCode(Enum):
    """Name of a fault -> advice for the person who sees it."""

    # camera_info
    CAMERA_INFO_MISSING = "no camera_info received: check the topic name and that the camera driver publishes it"
    CAMERA_INFO_UNCALIBRATED = (
        "focal length or principal point is zero, not finite or not in pixels: calibrate the camera or fix its "
        "driver's calibration file")
    CAMERA_INFO_SIZE_MISMATCH = (
        "camera_info and image differ in size: use the camera_info of the same stream and "
        "resolution")
    CAMERA_INFO_DISTORTED = (
        "the image is not rectified: feed the rectified stream (image_proc) or a camera without "
        "distortion")
    # image
    IMAGE_MISSING = "no image received: check the topic name, the QoS and that the camera runs"
    IMAGE_ENCODING_UNKNOWN = (
        "image encoding not supported: use rgb8, bgr8, rgba8, bgra8 or mono8; Bayer and YUV need ROS's cv_bridge")
    IMAGE_BIG_ENDIAN = "big-endian images are not supported: make the publisher send little-endian data"
    IMAGE_TRUNCATED = (
        "image data are shorter than step x height, or step is shorter than a row: the publisher is "
        "broken")
    FRAME_ID_MISSING = (
        "images carry no frame_id, so that nobody can tell where in the robot's world their objects are: set the "
        "camera's frame in its driver")
    # depth
    DEPTH_MISSING = "no depth received: check the depth topic, or set use_depth to false"
    DEPTH_ENCODING_UNKNOWN = "depth encoding not supported: use 16UC1 or mono16 (millimetres) or 32FC1 (metres)"
    DEPTH_SIZE_MISMATCH = "depth and image differ in size: use the depth stream aligned to colour"
    DEPTH_FRAME_MISMATCH = "depth and image have different frame_id: use the depth stream aligned to colour"
    DEPTH_EMPTY = "depth holds no valid reading: the camera is covered, too near, or its depth stream is off"
    DEPTH_UNIT_SUSPECT = (
        "depth values are implausible for metres: the publisher uses another unit (32FC1 is metres, "
        "16UC1 is millimetres)")
    DEPTH_SHIFTED = (
        "the depth image lies beside the colour image by some pixels, which was mended as far as can be told: "
        "calibrate the camera, or use its driver's aligned depth, taken at the same time")
    SUPPORT_PLANE_NOT_FOUND = (
        "no table, floor or shelf found in the depth image: turn the camera so that one fills a good "
        "part of it")
    # masks
    MASK_MISSING = "no segmentation received: check the detector and the topic name"
    MASK_ENCODING_UNKNOWN = (
        "the segmentation's encoding does not fit mask_format: set mask_format to what the detector "
        "publishes")
    MASK_SIZE_MISMATCH = (
        "the segmentation's aspect ratio differs from the image's, or it is larger than any image: the detector crops "
        "or pads its input")
    MASK_EMPTY = "the segmentation holds no object that is wanted: check the detector, and what was asked for"
    MASK_ALL_FOREGROUND = "one mask covers the whole image: the detector's threshold or the mask_format is wrong"
    MASK_SCATTERED = (
        "a mask's pixels lie apart from each other: the detector's threshold or the mask_format is "
        "wrong")
    MASK_INVALID = (
        "corners of a polygon or box are no numbers or far outside of the image, and it is left out: the detector is "
        "broken")
    MASKS_SHIFTED = (
        "all masks lie beside their objects by some pixels, which was mended as far as can be told: the detector crops "
        "or pads its input, or stamps its masks with the time of another image")
    MASK_TRUNCATED = "segmentation data are shorter than step x height: the publisher is broken"
    MASK_BIG_ENDIAN = "big-endian segmentation is not supported: make the publisher send little-endian data"
    TOO_MANY_OBJECTS = "more masks than max_objects: the largest are kept; raise max_objects if the machine can bear it"
    TOO_FEW_POINTS = (
        "an object has too few depth readings inside its mask to be reconstructed: move the camera nearer, or lower "
        "min_points")
    OBJECT_TOO_LARGE = (
        "an object's depth readings span more than this is made for: its mask takes in the background, or the depth's "
        "unit or the camera's calibration is wrong")
    SHAPE_NOT_FOUND = "the model found no closed surface for an object: its mask or depth is too poor"
    NOTHING_REBUILT = "none of the frame's objects could be rebuilt: see why each was rejected"
    # time
    STAMP_MISSING = (
        "messages carry no stamp, by which images and masks are matched: the publisher must fill it in, a detector "
        "with that of its image")
    STAMP_OUT_OF_ORDER = "a message is older than one already processed and was dropped"
    CLOCK_JUMPED_BACK = "time went backwards (bag loop or simulation reset): state was cleared"
    STAMPS_DO_NOT_MATCH = (
        "image, depth and segmentation arrive but their stamps never fall within sync_slop of each other: the detector "
        "must copy its image's stamp; raise history and history_bytes for a slow one, sync_slop for a camera that "
        "stamps apart")
    # transforms
    TF_MISSING = "the transform from target_frame to the camera is not available: check the TF tree"
    TF_STALE = "the newest transform is older than the image: the transform's publisher has stopped or lags"
    TF_FUTURE = "the transform is newer than the image by more than its history: check that clocks agree"
    # model and engine
    MODEL_MISSING = (
        "the model file does not exist: check the path, or use one that is shipped, base or small")
    MODEL_INVALID = "the model file cannot be read: it is truncated, not an ONNX model, or keeps weights in other files"
    MODEL_MISMATCH = "the model file is not a sam3d_ros student of this version: its inputs, outputs or metadata differ"
    ENGINE_UNAVAILABLE = "the wanted engine or precision cannot be had here: install what it needs, or set it to auto"
    ENGINE_FAILED = "the engine failed during inference: see what it says, and set engine to cpu to go on without it"
    ENGINE_NOT_BUILT = (
        "no engine has been built for this GPU and these versions: run `sam3d engine build`, or set "
        "allow_engine_build")
    ENGINE_BUILD_FAILED = (
        "the engine could not be built or loaded: check that driver, CUDA and TensorRT fit each other "
        "(sam3d doctor), or set engine to cpu")
    ENGINE_OUT_OF_MEMORY = "the GPU's memory does not suffice: end other programs that use it, or lower max_objects"
    ENGINE_INACCURATE = (
        "the engine's results differ too much from those of float32, and it is not used: set precision "
        "to fp32, take another engine, or build it again (sam3d engine build)")
    ENGINE_CACHE_UNSAFE = (
        "others could have put a program into the engine cache: see whom the named folder or file "
        "belongs to, and delete it, or point SAM3D_CACHE to a folder of your own")
    ENGINE_NOT_KEPT = (
        "an engine was wanted for later use, and cannot be kept: make room on the disk, or point SAM3D_CACHE to a "
        "folder that can be written")
    # set-up of the node
    PARAMETER_INVALID = "a parameter's value is refused: correct it, then configure the node again"
    PACKAGE_MISSING = (
        "a Python package is not installed: `sam3d doctor` tells what is missing and how to get it, and "
        "requirements.txt lists what a ROS installation lacks")
    # files
    FRAME_FOLDER_INVALID = (
        "the frame folder is incomplete or inconsistent: docs/conventions.md, Frame folder, says what it holds")
    RESULT_INVALID = "objects.json or a mesh beside it is missing or broken: run `sam3d reconstruct` again"
    BAG_UNREADABLE = "the bag is absent, truncated, or not a recording of rosbag2 (sqlite3 or MCAP)"
    BAG_TOPICS_UNCLEAR = ("say which topics to use: --image, --depth, --camera-info, --segmentation; for a bag without "
                          "masks, --tabletop makes them from depth")
    INTERNAL_ERROR = "a programming error in sam3d_ros: please report it with the log"

    @property
    def advice(self) -> str:
        """What to do about it, one line."""
        return self.value


class Fault(Exception):
    """An input or set-up fault with its name; str() gives `NAME: detail (advice)`."""

    def __init__(self, code: FaultCode, detail: str = ""):
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def without_traceback(self) -> Fault:
        """The same, to be kept: a traceback keeps alive what the functions on it held, images for instance, and does so
        until the garbage collector comes by if one of them held the fault."""
        return Fault(self.code, self.detail)

    def __str__(self) -> str:
        name, advice = self.code.name, self.code.advice
        return f"{name}: {self.detail} ({advice})" if self.detail else f"{name}: {advice}"


@contextmanager
def engine_faults() -> Iterator[None]:
    """An EngineError that is raised within becomes the Fault of its name."""
    from ..runtime.engine import EngineError  # here: who only names a fault need not load NumPy
    try:
        yield
    except EngineError as error:
        raise Fault(FaultCode[error.reason], error.detail) from error
