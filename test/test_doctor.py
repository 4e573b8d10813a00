"""`sam3d doctor`: what it finds, what it advises, and its exit status."""
from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from fake_gpu import FakeCuda

from sam3d_ros import cli, doctor, doctor_checks
from sam3d_ros.doctor_checks import BROKEN, GAP, OK, Check
from sam3d_ros.evaluation.environment import describe_environment
from sam3d_ros.perception import pipeline
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.pipeline import PipelineResult


class FakePipeline:
    """An engine that rebuilds one object from every frame."""

    engine_name = "fake fp32"

    def run(self, frame):
        return PipelineResult([object()], (), {})

    def close(self):
        pass


@pytest.fixture
def engines(monkeypatch) -> dict:
    """Engine -> what loading it gives: a pipeline, or a fault that is raised."""
    found = {"openvino": FakePipeline(), "onnxruntime": FakePipeline()}

    def load(config):
        if isinstance(found[config.engine], Exception):
            raise found[config.engine]
        return found[config.engine]

    monkeypatch.setattr(pipeline, "Pipeline", SimpleNamespace(from_config=load))
    monkeypatch.setattr(doctor_checks, "DISCOVERY_SECONDS", 0.1)
    return found


def named(checks: list[Check], name: str) -> Check:
    (check,) = [check for check in checks if check.name == name]
    return check


@pytest.mark.timeout(60)
def test_a_good_machine(engines, capsys):
    assert cli.main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert "fake fp32: one object, frame to mesh" in report
    assert report.endswith("sam3d can do its job here.\n")
    assert all(len(line) < 250 for line in report.splitlines())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("package", ["onnx", "llvmlite"])
def test_a_package_that_checks_need_is_named(package):
    doctor = f"import sys; sys.modules['{package}'] = None; from sam3d_ros import cli; sys.exit(cli.main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", doctor], capture_output=True, text=True)
    assert done.returncode == 1 and f"not checked: {package}" in done.stdout, done.stderr


@pytest.mark.timeout(60)
def test_json(engines, capsys):
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ready"] is True
    assert {check["group"] for check in report["checks"]} >= {"python", "ros", "libraries", "engine", "hardware", "dds"}
    assert all(check["state"] in (OK, GAP, BROKEN) for check in report["checks"])


@pytest.mark.timeout(60)
def test_a_virtual_environment_without_its_prefix(engines, monkeypatch, capsys):
    """As after `make venv` in a new shell."""
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    assert cli.main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert "- AMENT_PREFIX_PATH" in report and report.endswith("sam3d can do its job here.\n")
    if doctor_checks._version("ros-jazzy-rclpy"):
        assert f"export AMENT_PREFIX_PATH={sys.prefix}\n" in report


@pytest.mark.parametrize(("distro", "advice"), [("jazzy", "sudo apt install ros-jazzy-tf2-ros"),
                                                (None, "full ROS 2 installation")])
def test_packages_of_apt_are_advised_where_ros_comes_from_apt(distro, advice, monkeypatch):
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    if distro:
        monkeypatch.setenv("ROS_DISTRO", distro)
    assert advice in named(doctor_checks.ros_checks(), "tf2_ros").advice


@pytest.mark.timeout(60)
def test_no_engine_works(engines, capsys):
    engines["openvino"] = engines["onnxruntime"] = Fault(FaultCode.MODEL_MISSING, "student.onnx")
    assert cli.main(["doctor"]) == 1
    report = capsys.readouterr().out
    assert "MODEL_MISSING: student.onnx" in report
    assert report.endswith("sam3d cannot do its job here; missing or broken: a working engine\n")


def test_one_engine_is_enough(engines):
    engines["openvino"] = ImportError("libopenvino.so: cannot open shared object file")
    checks = doctor_checks.engine_checks()
    assert named(checks, "openvino").state == BROKEN
    assert "reinstall openvino" in named(checks, "openvino").advice
    assert doctor.main_job_obstacles(checks) == []


def test_gpu_engines(engines, monkeypatch):
    from sam3d_ros.runtime import cuda
    assert named(doctor_checks.engine_checks(), "tensorrt").detail == "no NVIDIA driver"
    driver = FakeCuda()
    monkeypatch.setattr(cuda, "load_driver", lambda: driver)
    monkeypatch.setattr(doctor_checks.importlib.util, "find_spec",
                        lambda name: None if name == "tensorrt_rtx" else object())
    tensorrt = ModuleType("tensorrt")
    tensorrt.__file__ = "tensorrt/__init__.py"
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    engines |= {"tensorrt": Fault(FaultCode.ENGINE_NOT_BUILT, "fp16, for Orin"), "onnxruntime-cuda": FakePipeline(),
                "onnxruntime-tensorrt": Fault(FaultCode.ENGINE_INACCURATE, "vIoU 0.5")}
    checks = doctor_checks.engine_checks()
    assert named(checks, "tensorrt").advice == "sam3d engine build --engine tensorrt"
    assert named(checks, "tensorrt-rtx").advice == "pip install tensorrt-rtx-cu13"
    assert named(checks, "onnxruntime-cuda").state == OK
    assert named(checks, "onnxruntime-tensorrt").state == BROKEN
    engines["onnxruntime-cuda"] = Fault(FaultCode.ENGINE_UNAVAILABLE, "this onnxruntime has no CUDAExecutionProvider")
    unavailable = named(doctor_checks.engine_checks(), "onnxruntime-cuda")
    assert unavailable.state == GAP and "docs/gpu.md" in unavailable.advice
    engines |= {"onnxruntime-tensorrt": Fault(FaultCode.ENGINE_NOT_BUILT, "builds one whenever it is loaded"),
                "onnxruntime-cuda": OSError("libcudnn.so.9: cannot open shared object file")}
    checks = doctor_checks.engine_checks()
    assert named(checks, "onnxruntime-tensorrt").advice == ""           # `sam3d engine build` cannot
    assert named(checks, "onnxruntime-cuda").state == BROKEN and "libcudnn" in named(checks, "onnxruntime-cuda").detail


@pytest.mark.parametrize(("name", "capability"), [("Orin", (8, 7)), ("NVIDIA Thor", (11, 0))])
def test_a_jetson_gets_its_packages_from_jetpack(name, capability, monkeypatch):
    """PyPI has none for it: pip would fail, or replace what works."""
    from sam3d_ros.runtime import cuda
    driver = FakeCuda(name, capability)
    monkeypatch.setattr(cuda, "load_driver", lambda: driver)
    monkeypatch.setattr(doctor_checks.importlib.util, "find_spec", lambda name: None)
    absent = {name: doctor_checks._gpu_engine_check(name).advice for name in doctor_checks.GPU_PACKAGES}
    assert absent.pop("tensorrt").startswith("sudo apt install python3-libnvinfer; a virtual environment sees it only")
    assert set(absent.values()) == {"none is needed: on a Jetson, tensorrt is the engine"}
    monkeypatch.setattr(doctor_checks.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "sudo apt install --reinstall python3-libnvinfer" in doctor_checks._gpu_engine_check("tensorrt").advice
    assert not driver.in_use
    driver.fail["cuInit"] = 304
    assert "group video" in named(doctor_checks.hardware_checks(), "GPU").advice


def test_the_gpu_is_what_the_driver_says(monkeypatch):
    from sam3d_ros.runtime import cuda
    driver = FakeCuda("Orin", (8, 7), memory=62 << 29)
    monkeypatch.setattr(cuda, "load_driver", lambda: driver)
    monkeypatch.setattr(cuda, "_VERSION_FILES", ())
    gpu = named(doctor_checks.hardware_checks(), "GPU")
    assert gpu.state == OK
    assert gpu.detail == ("Orin, compute capability 8.7, 28 multiprocessors, 31.0 GiB, CUDA 12.6; driver of "
                          "unknown version")
    assert describe_environment()["gpu"] == {"name": "Orin", "capability": "8.7", "multiprocessors": 28,
                                             "memory_gib": 31.0, "cuda": "12.6", "driver": ""}
    assert not driver.in_use
    driver.fail["cuInit"] = 100
    gpu = named(doctor_checks.hardware_checks(), "GPU")
    assert gpu.state == BROKEN and gpu.detail == "no usable NVIDIA GPU: cuInit: error 100"
    assert "--gpus all" in gpu.advice and describe_environment()["gpu"] is None
    monkeypatch.setattr(cuda, "load_driver", lambda: None)
    assert named(doctor_checks.hardware_checks(), "GPU").state == GAP


def test_an_engine_whose_library_does_not_load_is_broken(monkeypatch, tmp_path):
    """With the real pipeline, which calls it unavailable."""
    from sam3d_ros.runtime import cuda
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    driver = FakeCuda()
    monkeypatch.setattr(cuda, "load_driver", lambda: driver)
    check = doctor_checks._gpu_engine_check("tensorrt")
    assert check.state == BROKEN and "libnvinfer" in check.detail and "--force-reinstall tensorrt" in check.advice


def test_what_is_left_of_a_library_is_to_be_installed_anew(monkeypatch, tmp_path):
    """A folder without code, which Python takes for a package."""
    from sam3d_ros.runtime import cuda
    (tmp_path / "tensorrt_rtx").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    driver = FakeCuda()
    monkeypatch.setattr(cuda, "load_driver", lambda: driver)
    check = doctor_checks._gpu_engine_check("tensorrt-rtx")
    assert check.state == BROKEN and "only parts of tensorrt_rtx are left" in check.detail
    assert check.advice == "pip install --force-reinstall tensorrt-rtx-cu13"


def test_an_engine_that_finds_nothing_is_broken(engines):
    engines["openvino"] = SimpleNamespace(run=lambda frame: PipelineResult([], (), {}), close=lambda: None)
    assert named(doctor_checks.engine_checks(), "openvino").detail.startswith("SHAPE_NOT_FOUND")


def test_what_is_needed_and_not_in_order_is_named():
    checks = [Check("ros", "rclpy", BROKEN, "", needed=True), Check("ros", "tf2_ros", GAP, ""),
              Check("engine", "openvino", OK, "")]
    assert doctor.main_job_obstacles(checks) == ["rclpy"]


def test_a_needed_library_that_does_not_load(monkeypatch):
    def fail(module):
        raise OSError("libusb-1.0.so.0: cannot open shared object file")

    open3d = [library for library in doctor_checks.LIBRARIES if library.module == "open3d"]
    monkeypatch.setattr(doctor_checks, "LIBRARIES", open3d)
    monkeypatch.setattr(doctor_checks.importlib, "import_module", fail)
    (check,) = doctor_checks.library_checks()
    assert check.state == BROKEN
    assert check.needed
    assert "libusb" in check.detail
    assert "apt install libusb-1.0-0" in check.advice


@pytest.mark.parametrize(("content", "state", "detail"), [
    (None, GAP, "Fast DDS defaults"),
    ("absent", BROKEN, "does not exist"),
    ("<dds", BROKEN, "not XML"),
    ("<dds xmlns='x'/>", GAP, "no shared memory"),
    ("<dds xmlns='x'><t><type>SHM</type><segment_size>67108864</segment_size></t></dds>", OK, "64 MiB"),
])
def test_dds_profile(monkeypatch, tmp_path, content, state, detail):
    for name in ("RMW_IMPLEMENTATION", "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
        monkeypatch.delenv(name, raising=False)
    if content is not None:
        profile = tmp_path / "profile.xml"
        if content != "absent":
            profile.write_text(content)
        monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", str(profile))
    (check,) = doctor_checks.dds_checks()
    assert check.state == state
    assert detail in check.detail
    assert state == OK or "fastdds_shm.xml" in check.advice


def test_topics(monkeypatch):
    from sam3d_ros.ros import graph
    topics = {"/camera/image_raw/compressed": ["sensor_msgs/msg/CompressedImage"],
              "/camera/camera_info": ["sensor_msgs/msg/CameraInfo"], "/rosout": ["rcl_interfaces/msg/Log"]}
    monkeypatch.setattr(graph, "visible_topics", lambda seconds: topics)
    checks = doctor_checks.topic_checks()
    assert named(checks, "/camera/camera_info").state == OK
    assert "image_transport republish" in named(checks, "sensor_msgs/msg/Image").advice
    assert len(checks) == 2
    monkeypatch.setattr(graph, "visible_topics", lambda seconds: {"/image": ["sensor_msgs/msg/Image"]})
    assert named(doctor_checks.topic_checks(), "sensor_msgs/msg/CameraInfo").state == GAP


@pytest.mark.timeout(60)
def test_a_published_topic_is_visible():
    import rclpy
    from sensor_msgs.msg import Image

    from sam3d_ros.ros.graph import visible_topics
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("camera", context=context)
    node.create_publisher(Image, "/front/image", 1)
    try:
        assert visible_topics(1.5)["/front/image"] == ["sensor_msgs/msg/Image"]
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_the_sample_frame_is_a_ball():
    frame = doctor_checks.sample_frame()
    assert frame.depth.min() == pytest.approx(0.55, abs=1e-4)
    rows, columns = np.nonzero(frame.labels)
    # The silhouette of a ball: a cone of half angle asin(r / d).
    radius = frame.intrinsics.fx * np.tan(np.arcsin(0.05 / 0.6))
    assert np.ptp(columns) == pytest.approx(2 * radius, abs=2)
    assert np.ptp(rows) == pytest.approx(2 * radius, abs=2)
