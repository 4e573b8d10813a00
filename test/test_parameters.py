"""The parameter table."""
from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("rclpy")

from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

from sam3d_ros.perception.config import PipelineConfig  # noqa: E402
from sam3d_ros.perception.faults import Fault, FaultCode  # noqa: E402
from sam3d_ros.ros.parameters import Parameters, Settings, descriptor, markdown_table, pipeline_config  # noqa: E402

FIELDS = dataclasses.fields(Settings)


@pytest.mark.parametrize("field", FIELDS, ids=[field.name for field in FIELDS])
def test_every_parameter_is_described_and_its_default_allowed(field: dataclasses.Field):
    described = descriptor(field)
    assert described.name == field.name
    assert len(described.description) > 10
    assert described.type == Parameter.Type.from_parameter_value(field.default).value
    if field.metadata["choices"]:
        assert field.default in field.metadata["choices"]
        assert all(choice in described.additional_constraints for choice in field.metadata["choices"])
    if field.metadata["low"] is not None:
        assert field.metadata["low"] <= field.default <= field.metadata["high"]
        [allowed] = [*described.integer_range, *described.floating_point_range]
        assert (allowed.from_value, allowed.to_value) == (field.metadata["low"], field.metadata["high"])
    elif isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
        pytest.fail("a number needs a range")
    if isinstance(field.default, float):
        assert field.metadata["unit"]


def test_pipeline_config_takes_its_part():
    settings = Settings(model="a.onnx", engine="onnxruntime", threads=2, max_faces=700, min_points=33)
    config = pipeline_config(settings)
    assert (config.model, config.engine, config.threads, config.max_faces, config.min_points) == \
        ("a.onnx", "onnxruntime", 2, 700, 33)
    assert pipeline_config(Settings()) == PipelineConfig()


def test_camera_namespaces():
    assert Settings().camera_namespaces == ("",)
    assert Settings(cameras="left, right/,").camera_namespaces == ("left", "right")
    assert Settings(cameras="/left,/robot/right/").camera_namespaces == ("/left", "/robot/right")


@pytest.mark.usefixtures("ros")
@pytest.mark.parametrize(("cameras", "words"), [
    ("left,right,left", "'left' is given twice"),
    ("left,/robot/left/", "'/robot/left' is given twice"),
    ("1left", "'1left' is no valid name: "),
    ("left,my cam", "'my cam' is no valid name: "),
    ("a//b", "'a//b' is no valid name: "),
    ("left,/", "'/' is no valid name: "),
    ("{nonsense}", "'{nonsense}' is no valid name: "),
    ("robot/", ""),
    ("/left,left,~/left", ""),
])
def test_names_of_cameras_are_checked(cameras: str, words: str):
    node = Node("sam3d_node", namespace="robot", parameter_overrides=[Parameter("cameras", value=cameras),
                                                                      Parameter("target_frame", value="base")])
    try:
        parameters = Parameters(node, lambda: True, lambda before, after: None)
        if not words:
            parameters.check()
            return
        with pytest.raises(Fault) as caught:
            parameters.check()
    finally:
        node.destroy_node()
    assert caught.value.code is FaultCode.PARAMETER_INVALID
    assert f"parameter cameras: {words}" in caught.value.detail


@pytest.mark.usefixtures("ros")
def test_changes_are_taken_by_the_rclpy_of_humble_too(monkeypatch):
    """Which lacks what came with Iron: a Jetson with JetPack 6 has it."""
    monkeypatch.delattr(Node, "add_post_set_parameters_callback", raising=False)
    node = Node("sam3d_node", parameter_overrides=[Parameter("classes", value="cup"),
                                                   Parameter("max_objects", value=0)])
    changes: list[tuple[Settings, Settings]] = []
    configured: list[bool] = []
    try:
        parameters = Parameters(node, lambda: not configured, lambda *change: changes.append(change))
        assert (parameters.settings.classes, parameters.settings.max_objects) == ("cup", Settings().max_objects)
        with pytest.raises(Fault, match="parameter max_objects: "):
            parameters.check()
        node.set_parameters([Parameter("max_objects", value=3)])
        parameters.check()
        configured.append(True)
        good, fixed, wrong = node.set_parameters([Parameter("max_rate", value=5.0), Parameter("max_objects", value=4),
                                                  Parameter("tf_timeout", value=11.0)])
        assert (good.successful, fixed.successful, wrong.successful) == (True, False, False)
        both = node.set_parameters_atomically([Parameter("max_rate", value=7.0), Parameter("model", value="base")])
        assert not both.successful
        expected = Settings(classes="cup", max_objects=3, max_rate=5.0)
        assert parameters.settings == expected == changes[-1][1]
        assert node.get_parameter("max_rate").value == 5.0
        assert [after for _, after in changes[:-1]] == [before for before, _ in changes[1:]]
    finally:
        node.destroy_node()


def test_wanted_classes():
    assert Settings().wanted_classes == frozenset()
    assert Settings(classes=" cup, bowl ,").wanted_classes == {"cup", "bowl"}


def test_the_table_has_a_row_for_each_parameter():
    rows = markdown_table().splitlines()[2:]
    assert [row.split("|")[1].strip(" `") for row in rows] == [field.name for field in FIELDS]
    assert all(row.count("|") == rows[0].count("|") for row in rows)
    [history] = [row for row in rows if "`history_bytes`" in row]
    assert "| 1048576 to 1099511627776 | bytes |" in history
