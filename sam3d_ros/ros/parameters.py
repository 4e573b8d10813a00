"""The node's parameters, each declared once: here.

`Settings` is the table; the ROS descriptors, the checks and the documentation are made from it.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.parameter import Parameter

from ..perception.config import DEFAULTS, RANGES, PipelineConfig
from ..perception.faults import Fault, FaultCode
from ..runtime.engine import ENGINE_CHOICES, MODEL_HELP, PRECISIONS

RCLError = rclpy_implementation.RCLError
MASK_FORMATS = ("binary", "labels", "gz_semantic", "gz_panoptic", "yolo_msgs", "isaac_tensor", "boxes")
_NO_COMMON_FRAME = "parameter target_frame: is empty, and several cameras need one"


def _parameter(default: bool | int | float | str, description: str, *, unit: str = "", choices: tuple[str, ...] = (),
               low: float | None = None, high: float | None = None, live: bool = False) -> Any:
    """One parameter; `live`: can be changed while the node is configured or active."""
    return dataclasses.field(default=default, metadata={
        "description": description, "unit": unit, "choices": choices, "low": low, "high": high, "live": live})


def _of_pipeline(name: str, description: str, choices: tuple[str, ...] = ()) -> Any:
    """A parameter that is a field of PipelineConfig, with its default and range there."""
    low, high = RANGES.get(name, (None, None))
    return _parameter(getattr(DEFAULTS, name), description, choices=choices, low=low, high=high)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Values of all parameters at one moment."""

    # Model
    model: str = _of_pipeline("model", MODEL_HELP)
    engine: str = _of_pipeline("engine", "inference engine; auto: a GPU engine if one works, else the CPU engine that "
                                         "is fastest on this machine", ENGINE_CHOICES)
    precision: str = _of_pipeline("precision", "arithmetic of the engine; auto: the fastest that agrees with fp32",
                                  PRECISIONS)
    threads: int = _of_pipeline("threads", "CPU threads for inference and surfaces; 0: all cores")
    allow_engine_build: bool = _of_pipeline(
        "allow_engine_build", "build the engine for this GPU while configuring if there is none yet, which takes "
                              "minutes; false: report a fault instead")
    build_only: bool = _of_pipeline("build_only",
                                    "build the engine, then end; with a lifecycle manager: never activate")
    max_objects: int = _of_pipeline("max_objects", "objects reconstructed per image, the largest masks first")
    max_faces: int = _of_pipeline("max_faces", "largest number of triangles of a mesh")
    symmetry: bool = _of_pipeline(
        "symmetry", "complete hidden sides of objects by their planes of mirror symmetry; false: tens of milliseconds "
                    "faster for each object, and rougher far sides")
    min_points: int = _of_pipeline("min_points", "least number of depth readings in an object's mask")
    # Input
    cameras: str = _parameter("", "namespaces of the cameras' input topics, separated by commas; several cameras need "
                                  "target_frame, and each its own frame_id; empty: one camera without a namespace")
    mask_format: str = _parameter("labels", "what is published on `segmentation`; boxes: only `detections` are used",
                                  choices=MASK_FORMATS)
    classes: str = _parameter("", "class ids to reconstruct, separated by commas; empty: all", live=True)
    use_depth: bool = _parameter(True, "wait for `depth_image`; false: from colour and masks alone, with rough sizes")
    image_is_rectified: bool = _parameter(
        True, "`image` is rectified: P of camera_info describes it; false: K does, and D must be zero")
    sync_slop: float = _parameter(0.02, "largest difference between the stamps of the image and of its depth and "
                                        "masks; keep it below half the camera's period", unit="s", low=0.0, high=1.0)
    history: float = _parameter(2.0, "how long images wait for their masks: at least the detector's lag",
                                unit="s", low=0.1, high=60.0)
    history_bytes: int = _parameter(512 * 1024 * 1024, "most memory that waiting messages may take",
                                    unit="bytes", low=1024 * 1024, high=1 << 40)
    input_timeout: float = _parameter(5.0, "silence of an input, or time without a matching set, until a fault is "
                                           "reported", unit="s", low=0.1, high=3600.0, live=True)
    reliability: str = _parameter("auto", "QoS of the image subscriptions; auto: what the publisher offers",
                                  choices=("auto", "reliable", "best_effort"))
    # Transforms
    target_frame: str = _parameter("", "frame of all poses, its +Z pointing up; empty: the camera's frame. Needs "
                                       "tf2_ros", live=True)
    tf_timeout: float = _parameter(0.1, "how long to wait for the transform at the image's stamp",
                                   unit="s", low=0.0, high=10.0, live=True)
    # Output
    enabled: bool = _parameter(True, "process every image; false: only on request of the action", live=True)
    follow_ahead: bool = _parameter(
        True, "while masks lag, follow the known objects in depth into images whose masks have not come yet, so that "
              "poses come at the camera's rate and without the detector's delay", live=True)
    max_rate: float = _parameter(0.0, "most images processed per second; 0: as many as possible",
                                 unit="Hz", low=0.0, high=1000.0, live=True)
    reconstruct_hz: float = _parameter(
        2.0, "most reconstructions per second, each of all objects that are new, show a new side or fit badly",
        unit="Hz", low=0.01, high=100.0, live=True)
    remember: float = _parameter(30.0, "how long an object that is not seen keeps its id", unit="s", low=0.0,
                                 high=86400.0)
    physics: bool = _parameter(True, "after a reconstruction, put objects at rest on their support and on each other, "
                                     "as far as their uncertainty allows")
    publish_markers: bool = _parameter(
        True, "publish `markers` for RViz and Foxglove (only while somebody listens)", live=True)
    publish_object_points: bool = _parameter(
        True, "publish `object_points`, the points seen (only while somebody listens)", live=True)
    publish_debug_image: bool = _parameter(True, "publish `debug/image` (only while somebody listens)", live=True)
    publish_planning_scene: bool = _parameter(False, "publish `planning_scene` diffs for MoveIt. Needs moveit_msgs")
    publish_tf: bool = _parameter(False, "broadcast each object's pose as frame sam3d/<id>, or, in a namespace, "
                                           "sam3d/<namespace>/<id>. Needs tf2_ros")
    diagnostics_period: float = _parameter(1.0, "time between messages on /diagnostics; a new fault is sent at once",
                                           unit="s", low=0.05, high=60.0)
    # Start
    autostart: bool = _parameter(True, "configure and activate by itself when run as an executable; set it false for a "
                                       "lifecycle manager")

    @property
    def camera_namespaces(self) -> tuple[str, ...]:
        """`cameras` one by one; ("",) for the one without a namespace."""
        names = [name.strip() for name in self.cameras.split(",")]
        return tuple(name.rstrip("/") or "/" for name in names if name) or ("",)

    @property
    def wanted_classes(self) -> frozenset[str]:
        """`classes` as a set, empty: all."""
        return frozenset(name.strip() for name in self.classes.split(",") if name.strip())


def pipeline_config(settings: Settings) -> PipelineConfig:
    """The pipeline's part of the settings."""
    return PipelineConfig(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(PipelineConfig)})


def markdown_table() -> str:
    """The parameters as a Markdown table."""
    lines = ["| parameter | type | default | range | unit | at run time | meaning |", "|---|---|---|---|---|---|---|"]
    for field in dataclasses.fields(Settings):
        data = field.metadata
        default = f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`" \
            if field.default != "" else "empty"
        allowed = ", ".join(data["choices"])
        if data["low"] is not None:
            shown = "d" if isinstance(field.default, int) else "g"
            allowed = f"{data['low']:{shown}} to {data['high']:{shown}}"
        lines.append(f"| `{field.name}` | {type(field.default).__name__} | {default} | {allowed} | {data['unit']} | "
                     f"{'yes' if data['live'] else 'no'} | {data['description']} |")
    return "\n".join(lines) + "\n"


def descriptor(field: dataclasses.Field) -> ParameterDescriptor:
    """ROS descriptor of a field of Settings."""
    data = field.metadata
    unit = f" [{data['unit']}]" if data["unit"] else ""
    result = ParameterDescriptor(name=field.name, description=data["description"] + unit,
                                 type=Parameter.Type.from_parameter_value(field.default).value)
    if data["choices"]:
        result.additional_constraints = "one of: " + ", ".join(data["choices"])
    elif not data["live"]:
        result.additional_constraints = "can be set only while the node is unconfigured"
    if data["low"] is not None and isinstance(field.default, int):
        result.integer_range = [IntegerRange(from_value=data["low"], to_value=data["high"], step=1)]
    elif data["low"] is not None:
        result.floating_point_range = [FloatingPointRange(from_value=data["low"], to_value=data["high"], step=0.0)]
    return result


class Parameters:
    """Declares the parameters on a node, refuses wrong values by name, and holds the present ones.

    A wrong value given at start (YAML, command line) does not stop the node: it is kept in mind, `check` raises it, and
    setting the parameter again mends it.

    Changes are taken in the callback that may refuse them: rclpy has had one for what was set only since Iron, and a
    Jetson with JetPack 6 has Humble.

    is_unconfigured: whether parameters that are not live may change now
    on_change: called with the settings before and after each change, those at start among them
    """

    def __init__(self, node: Node, is_unconfigured: Callable[[], bool],
                 on_change: Callable[[Settings, Settings], None]):
        self._node = node
        self._fields = {field.name: field for field in dataclasses.fields(Settings)}
        self._refused: dict[str, str] = {}
        self._is_unconfigured = is_unconfigured
        self._on_change = on_change
        self.settings = Settings()
        node.add_on_set_parameters_callback(self._on_set)
        for field in self._fields.values():
            self._declare(field)

    def check(self) -> None:
        """Raise Fault PARAMETER_INVALID if a value given at start was refused, or cameras are named wrongly or lack a
        common frame."""
        if self._refused:
            raise Fault(FaultCode.PARAMETER_INVALID, "; ".join(self._refused.values()))
        if self.settings.cameras:
            self._check_cameras()
        if len(self.settings.camera_namespaces) > 1 and not self.settings.target_frame:
            raise Fault(FaultCode.PARAMETER_INVALID, _NO_COMMON_FRAME)

    def _check_cameras(self) -> None:
        places = set()
        for name in self.settings.camera_namespaces:
            try:
                place = self._node.resolve_topic_name(name, only_expand=True)
            except RCLError as error:
                reason = str(error).split(", at /")[0]  # without the place in rcl's source
                raise Fault(FaultCode.PARAMETER_INVALID,
                            f"parameter cameras: '{name}' is no valid name: {reason}") from None
            if place in places:
                raise Fault(FaultCode.PARAMETER_INVALID, f"parameter cameras: '{name}' is given twice")
            places.add(place)

    def _declare(self, field: dataclasses.Field) -> None:
        try:
            self._node.declare_parameter(field.name, field.default, descriptor(field))
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            self._node.declare_parameter(field.name, field.default, descriptor(field), ignore_override=True)
            self._refused[field.name] = f"parameter {field.name}: {error}"

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        ours = [parameter for parameter in parameters if parameter.name in self._fields]
        if reason := next(filter(None, map(self._objection, ours)), ""):
            return SetParametersResult(reason=reason)
        self._take(ours)
        return SetParametersResult(successful=True)

    def _objection(self, parameter: Parameter) -> str:
        """Why a parameter may not be set to this value now, or nothing."""
        field = self._fields[parameter.name]
        choices = field.metadata["choices"]
        if choices and parameter.value not in choices:
            return f"parameter {field.name}: '{parameter.value}' is not one of " + ", ".join(choices)
        if self._is_unconfigured():
            return ""
        if not field.metadata["live"]:
            return f"parameter {field.name}: can be set only while the node is unconfigured (clean it up first)"
        if field.name == "target_frame" and not parameter.value and len(self.settings.camera_namespaces) > 1:
            return _NO_COMMON_FRAME
        return ""

    def _take(self, parameters: list[Parameter]) -> None:
        for parameter in parameters:
            self._refused.pop(parameter.name, None)
        before = self.settings
        self.settings = dataclasses.replace(before, **{parameter.name: parameter.value for parameter in parameters})
        if before != self.settings:
            self._on_change(before, self.settings)
