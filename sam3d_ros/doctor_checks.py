"""The checks of `sam3d doctor`: Python, ROS, libraries, engines, hardware, DDS and camera topics."""
from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.frame import Frame, Instance, Intrinsics, pixel_directions
from sam3d_ros.runtime.engine import last_line

SUPPORTED_PYTHON = ((3, 10), (3, 13))
DISCOVERY_SECONDS = 2.0

OK, GAP, BROKEN = "ok", "gap", "broken"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    state: OK; GAP: absent, or could be better; BROKEN: there, but does not work
    needed: sam3d cannot do its main job on this machine unless the state is OK
    advice: what to do about it, empty where there is nothing to do
    """

    group: str
    name: str
    state: str
    detail: str
    advice: str = ""
    needed: bool = False


@dataclass(frozen=True)
class Library:
    """A Python library: its module, its distribution, what it is for and how to get it (empty: no need to)."""

    module: str
    distribution: str
    purpose: str
    advice: str
    needed: bool = False


LIBRARIES = (
    Library("numpy", "numpy", "arrays", "pip install numpy", needed=True),
    Library("scipy", "scipy", "geometry", "pip install scipy", needed=True),
    Library("PIL", "pillow", "frame folders", "pip install pillow", needed=True),
    Library("skimage", "scikit-image", "errors of colour, in sam3d bench", "pip install scikit-image"),
    Library("onnx", "onnx", "int8 and float16", "pip install onnx", needed=True),
    Library("numba", "numba", "evidence and surfaces", "pip install numba", needed=True),
    Library("threadpoolctl", "threadpoolctl", "threads of linear algebra", "pip install threadpoolctl", needed=True),
    Library("trimesh", "trimesh", "meshes", "pip install trimesh", needed=True),
    Library("open3d", "open3d", "ray casting",
            "pip install open3d, and sudo apt install libusb-1.0-0 libgl1 libegl1 libgomp1", needed=True),
    Library("rosbags", "rosbags", "sam3d replay", "pip install rosbags"),
    Library("mujoco", "mujoco", "simulated camera and sam3d demo", "pip install mujoco"),
    Library("torch", "torch", "training, and to compare engines with",
            "pip install 'sam3d_ros[train]', if you want to train"),
    Library("tensorrt", "tensorrt", "engine for NVIDIA GPUs", ""),
    Library("tensorrt_rtx", "tensorrt-rtx-cu13", "engine for RTX GPUs", ""),
)

_ONNXRUNTIME_GPU = "'onnxruntime-gpu[cuda,cudnn]'"
# GPU engine -> what pip has to install for it.
GPU_PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx-cu13", "onnxruntime-tensorrt": _ONNXRUNTIME_GPU,
                "onnxruntime-cuda": _ONNXRUNTIME_GPU}

# Compute capabilities of Jetsons, Orin and Thor, for which PyPI has none of these packages -> what JetPack has instead.
_JETSONS = ("8.7", "11.0")
_JETSON_PACKAGES = {"tensorrt": "python3-libnvinfer"}

# Packages of a full ROS 2 installation, none of them needed -> what sam3d does without them.
ROS_PACKAGES = {
    "tf2_ros": "no poses in another frame than the camera's, no TF output",
    "vision_msgs": "no detections input, no detections_3d output",
    "moveit_msgs": "no planning_scene output",
    "launch_ros": "no ros2 launch: start the nodes as in docs/launch.md, Without ros2 launch",
}

IMAGE_TYPE, CAMERA_INFO_TYPE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo"
COMPRESSED_TYPES = ("sensor_msgs/msg/CompressedImage", "theora_image_transport/msg/Packet")
CAMERA_TYPES = (IMAGE_TYPE, CAMERA_INFO_TYPE, "vision_msgs/msg/Detection2DArray")


def examine() -> list[Check]:
    """All checks, in the order of the report."""
    groups = (python_checks, ros_checks, library_checks, engine_checks, hardware_checks, dds_checks, topic_checks)
    return [check for group in groups for check in _checks_of(group)]


def _checks_of(group: Callable[[], list[Check]]) -> list[Check]:
    """The checks of a group, or that they need a package: what that is for is said under `libraries`."""
    try:
        return group()
    except ModuleNotFoundError as error:
        name = group.__name__.removesuffix("_checks")
        return [Check(name, name, BROKEN, f"not checked: {error.name} is not installed", f"pip install {error.name}")]


def python_checks() -> list[Check]:
    """The interpreter and this package."""
    oldest, newest = SUPPORTED_PYTHON
    supported = oldest <= sys.version_info[:2] <= newest
    span = f"{oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}"
    return [Check("python", "python", OK if supported else BROKEN, f"{platform.python_version()} ({sys.executable})",
                  f"use Python {span}", needed=True)]


def ros_checks() -> list[Check]:
    """ROS 2 itself, this package's messages, and the optional packages of a full installation."""
    distro = os.environ.get("ROS_DISTRO")
    wheels = _version("ros-jazzy-rclpy")
    if distro:
        source = Check("ros", "ROS 2", OK, f"{distro}, from {os.environ.get('AMENT_PREFIX_PATH', 'an unknown prefix')}")
    elif wheels:
        source = Check("ros", "ROS 2", OK, f"jazzy, wheels of PyPI (ros-jazzy-rclpy {wheels})")
    else:
        source = Check("ros", "ROS 2", GAP, "not found",
                       "source /opt/ros/<distro>/setup.bash, or pip install sam3d_ros")
    imports = [
        _import_check("ros", "rclpy", "rclpy", "source your ROS 2 installation, or pip install ros-jazzy-rclpy"),
        _import_check("ros", "sam3d_ros messages", "sam3d_ros.msg",
                      "build the package: colcon build and source install/setup.bash, or pip install ."),
    ]
    checks = [source, *imports]
    if all(check.state == OK for check in imports):
        from sam3d_ros.ros.graph import rmw_name
        checks.append(Check("ros", "middleware", OK, rmw_name()))
        checks.append(_cv_bridge_check() if os.environ.get("AMENT_PREFIX_PATH") else Check(
            "ros", "AMENT_PREFIX_PATH", GAP, "not set: ROS finds no package by its name, nor a launch file of one",
            f"export AMENT_PREFIX_PATH={sys.prefix}" if wheels else "source your ROS 2 installation"))
    for package, loss in ROS_PACKAGES.items():
        found = importlib.util.find_spec(package) is not None
        checks.append(Check("ros", package, OK if found else GAP, "installed" if found else f"not installed; {loss}",
                            _ros_package_advice(package)))
    return checks


def library_checks() -> list[Check]:
    """The Python libraries, each of the needed ones really imported: a shared library of the system may be missing."""
    checks = []
    for library in LIBRARIES:
        if importlib.util.find_spec(library.module) is None:
            checks.append(Check("libraries", library.distribution, GAP, f"not installed ({library.purpose})",
                                library.advice, library.needed))
        elif library.needed:
            checks.append(_import_check("libraries", library.distribution, library.module, library.advice))
        else:
            checks.append(Check("libraries", library.distribution, OK, _version(library.distribution) or "installed"))
    return checks


def engine_checks() -> list[Check]:
    """Each engine, with the model that is shipped, on a made-up frame."""
    from sam3d_ros.runtime.engine import CPU_ENGINES, GPU_ENGINES, available_engines
    importlib.import_module("sam3d_ros.perception.pipeline")        # what this lacks is not the engines' fault
    checks = []
    for name in CPU_ENGINES:
        if name not in available_engines():
            checks.append(Check("engine", name, GAP, "not installed", f"pip install {name}"))
            continue
        try:
            checks.append(Check("engine", name, OK, _time_engine(name)))
        except Fault as fault:
            checks.append(Check("engine", name, BROKEN, f"{fault.code.name}: {fault.detail}", fault.code.advice))
        except (ImportError, OSError) as error:
            checks.append(Check("engine", name, BROKEN, last_line(error), f"pip install --force-reinstall {name}"))
    return checks + [_gpu_engine_check(name) for name in GPU_ENGINES]


def hardware_checks() -> list[Check]:
    """Processor and graphics card."""
    from sam3d_ros.runtime.processor import instructions, sums_bytes_exactly
    cores, has_int8 = len(os.sched_getaffinity(0)), sums_bytes_exactly()
    return [
        Check("hardware", "processor", OK, f"{cores} cores, {platform.machine()}"),
        Check("hardware", "int8", OK if has_int8 else GAP, ", ".join(instructions()) +
              ("" if has_int8 else ": no VNNI, the network takes two to three times as long")),
        _gpu_check(),
    ]


def dds_checks() -> list[Check]:
    """The Fast DDS profile: with its defaults, best-effort camera images are mostly lost between processes."""
    if os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") != "rmw_fastrtps_cpp":
        return [Check("dds", "shared memory", OK, f"{os.environ['RMW_IMPLEMENTATION']}: not configured by sam3d")]
    from sam3d_ros.ros.processes import fastdds_profile
    advice = (f"export FASTRTPS_DEFAULT_PROFILES_FILE={fastdds_profile()} for camera and node alike, "
              "or use the launch file")
    variables = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
    path = next((os.environ[name] for name in variables if os.environ.get(name)), None)
    if path is None:
        return [Check("dds", "shared memory", GAP,
                      "Fast DDS defaults: large images sent best effort are mostly lost", advice)]
    if not Path(path).is_file():
        return [Check("dds", "shared memory", BROKEN, f"profile {path} does not exist", advice)]
    try:
        segment = _shared_memory_bytes(Path(path))
    except ElementTree.ParseError as error:
        return [Check("dds", "shared memory", BROKEN, f"profile {path} is not XML: {error}", advice)]
    if segment is None:
        return [Check("dds", "shared memory", GAP, f"profile {path} sets up no shared memory", advice)]
    return [Check("dds", "shared memory", OK, f"{segment / 2**20:.0f} MiB segment, profile {path}")]


def topic_checks() -> list[Check]:
    """Camera topics that are published now."""
    try:
        from sam3d_ros.ros.graph import visible_topics
    except ImportError:
        return []                                  # said under `ros` already
    try:
        topics = visible_topics(DISCOVERY_SECONDS)
    except RuntimeError as error:                  # what rclpy's errors derive from
        return [Check("topics", "discovery", BROKEN, last_line(error),
                      "check the network and the middleware's settings")]
    found = [(name, kind) for name, kinds in sorted(topics.items()) for kind in kinds if kind in CAMERA_TYPES]
    checks = [Check("topics", name, OK, kind) for name, kind in found]
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    compressed = [name for name, kinds in sorted(topics.items()) if set(kinds) & set(COMPRESSED_TYPES)]
    for kind in (IMAGE_TYPE, CAMERA_INFO_TYPE):
        if kind not in {seen for _, seen in found}:
            advice = f"start the camera driver; if it runs, check ROS_DOMAIN_ID (here: {domain}) on both sides"
            if compressed and kind == IMAGE_TYPE:
                advice = f"only compressed images found ({compressed[0]}): decode them with image_transport republish"
            checks.append(Check("topics", kind, GAP, "none visible", advice))
    return checks


def sample_frame() -> Frame:
    """A ball of 5 cm radius in front of a wall, 640x480: enough to run the whole pipeline once."""
    intrinsics = Intrinsics(640, 480, 600.0, 600.0, 319.5, 239.5)
    rows, columns = np.mgrid[:intrinsics.height, :intrinsics.width]
    rays = pixel_directions(intrinsics, rows, columns)
    centre, radius, wall = np.array([0.0, 0.0, 0.6]), 0.05, 0.65
    # |z * ray - centre| = radius, the nearer of its solutions in z
    a, b, c = (rays**2).sum(axis=-1), rays @ centre, centre @ centre - radius**2
    root = b**2 - a * c
    ball = root > 0
    depth = np.full(rows.shape, wall, np.float32)
    depth[ball] = ((b - np.sqrt(np.maximum(root, 0))) / a)[ball]
    colour = np.full((*rows.shape, 3), 128, np.uint8)
    return Frame(colour, depth, ball.astype(np.int32), intrinsics, (Instance(1, "ball"),))


def _gpu_engine_check(name: str) -> Check:
    """A GPU engine, run if it has been built; building one takes minutes, and is not begun here."""
    from sam3d_ros.runtime import cuda
    from sam3d_ros.runtime.engine import GPU_ENGINES
    from sam3d_ros.runtime.tensorrt_build import NAMES
    if cuda.load_driver() is None:
        return Check("engine", name, GAP, "no NVIDIA driver")
    if importlib.util.find_spec(GPU_ENGINES[name]) is None:
        return Check("engine", name, GAP, "not installed", _gpu_package_advice(name, "install"))
    try:
        return Check("engine", name, OK, _time_engine(name))
    except Fault as fault:
        advice = {FaultCode.ENGINE_NOT_BUILT: f"sam3d engine build --engine {name}" if name in NAMES else "",
                  FaultCode.ENGINE_UNAVAILABLE: "docs/gpu.md says what it needs"}
        return Check("engine", name, GAP if fault.code in advice else BROKEN, f"{fault.code.name}: {fault.detail}",
                     advice.get(fault.code, fault.code.advice))
    except (ImportError, OSError) as error:
        return Check("engine", name, BROKEN, last_line(error), _gpu_package_advice(name, "install --force-reinstall",
                                                                                  "install --reinstall"))


def _gpu_package_advice(name: str, pip: str, apt: str = "install") -> str:
    """How to get what a GPU engine needs: by pip, with these words, or on a Jetson by apt."""
    from sam3d_ros.runtime.engine import EngineError
    from sam3d_ros.runtime.tensorrt_engine import gpu_facts
    try:
        on_jetson = gpu_facts()["capability"] in _JETSONS
    except EngineError:
        on_jetson = False
    if not on_jetson:
        return f"pip {pip} {GPU_PACKAGES[name]}"
    if name not in _JETSON_PACKAGES:
        return "none is needed: on a Jetson, tensorrt is the engine"
    return f"sudo apt {apt} {_JETSON_PACKAGES[name]}; a virtual environment sees it only with --system-site-packages"


def _time_engine(name: str) -> str:
    """Precision and time of the second of two runs.

    Raises ImportError or OSError if the engine's library does not load, Fault if engine or model does not work.
    """
    from sam3d_ros.perception.config import PipelineConfig
    from sam3d_ros.perception.pipeline import Pipeline
    from sam3d_ros.runtime.engine import import_library
    import_library(name)                           # else it would only be unavailable, as one that is not installed
    with closing(Pipeline.from_config(PipelineConfig(engine=name, allow_engine_build=False))) as pipeline:
        frame = sample_frame()
        pipeline.run(frame)                        # the first run compiles and allocates
        start = time.perf_counter()
        result = pipeline.run(frame)
        milliseconds = (time.perf_counter() - start) * 1e3
        if not result.objects:
            raise result.rejections[0].fault if result.rejections else Fault(FaultCode.SHAPE_NOT_FOUND)
        return f"{pipeline.engine_name}: one object, frame to mesh, in {milliseconds:.0f} ms"


def _import_check(group: str, name: str, module: str, advice: str) -> Check:
    """A needed module, really imported."""
    try:
        imported = importlib.import_module(module)
    except (ImportError, OSError) as error:        # OSError: a shared library of the system is missing
        return Check(group, name, BROKEN, last_line(error), advice, needed=True)
    version = getattr(imported, "__version__", None)
    return Check(group, name, OK, str(version or "installed"), needed=True)


def _cv_bridge_check() -> Check:
    """The cv_bridge of PyPI decodes 16UC1 depth as bytes; sam3d never uses it, but other nodes might."""
    from sam3d_ros.ros.images import upstream_cv_bridge
    if upstream_cv_bridge():
        return Check("ros", "cv_bridge", OK, "of ROS, used for Bayer and YUV images")
    if importlib.util.find_spec("cv_bridge"):
        return Check("ros", "cv_bridge", BROKEN, "of PyPI, which reads 16UC1 depth wrong (sam3d ignores it)",
                     f"pip uninstall cv-bridge; if you need it, {_ros_package_advice('cv_bridge')}")
    return Check("ros", "cv_bridge", GAP, "not installed; no Bayer and YUV images", _ros_package_advice("cv_bridge"))


def _ros_package_advice(package: str) -> str:
    """How to get an optional package of ROS; one from apt is of no use to a Python with the wheels of PyPI."""
    distro = os.environ.get("ROS_DISTRO")
    return f"sudo apt install ros-{distro}-{package.replace('_', '-')}" if distro \
        else "if you need it, use a full ROS 2 installation (README.md, With ROS 2 Jazzy)"


def _gpu_check() -> Check:
    """What the driver says of the GPU, as engines ask it: nvidia-smi is not on every Jetson, nor in every container."""
    from sam3d_ros.runtime import cuda
    from sam3d_ros.runtime.engine import EngineError
    from sam3d_ros.runtime.tensorrt_engine import gpu_facts
    if cuda.load_driver() is None:
        return Check("hardware", "GPU", GAP,
                     f"no NVIDIA driver found ({cuda.LIBRARY}); not needed, sam3d runs on the CPU, too")
    try:
        facts = gpu_facts()
    except EngineError as error:
        return Check("hardware", "GPU", BROKEN, error.detail,
                     "start a container with --gpus all (Jetson: --runtime nvidia); elsewhere end other programs that "
                     "use the GPU, or reinstall the NVIDIA driver; on a Jetson, the user has to be in the group video")
    detail = ("{name}, compute capability {capability}, {multiprocessors} multiprocessors, {memory_gib} GiB, "
              "CUDA {cuda}").format(**facts)
    return Check("hardware", "GPU", OK, f"{detail}; {facts['driver'] or 'driver of unknown version'}")


def _shared_memory_bytes(profile: Path) -> int | None:
    """Segment size of the shared-memory transport in a Fast DDS profile; None without one."""
    for transport in ElementTree.parse(profile).iter():
        values = {child.tag.rpartition("}")[2]: (child.text or "").strip() for child in transport}
        if values.get("type") == "SHM" and values.get("segment_size", "").isdigit():
            return int(values["segment_size"])
    return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
