"""What the node says while an engine is built, and the parameters that steer it."""
from types import SimpleNamespace

import pytest
from node_rig import Rig
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import TransitionCallbackReturn

from sam3d_ros.nodes import sam3d_node
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.pipeline import Pipeline
from sam3d_ros.ros.parameters import Settings

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


@pytest.mark.timeout(120)
def test_a_build_shows_its_progress(ros):
    with Rig(activate=False) as rig:
        def load(settings):
            for percent in (0, 40, 40, 100):
                rig.node._on_progress(percent, "timing kernels")
            return rig.pipeline

        rig.node._load = load
        rig.wait(lambda: rig.node._diagnostics._publisher.get_subscription_count())
        assert rig.node.trigger_configure() == SUCCESS
        rig.wait(lambda: any("100 %" in status.message for array in rig.diagnostics for status in array.status))
        said = [status for array in rig.diagnostics for status in array.status if "CONFIGURING" in status.message]
        assert [status.message for status in said] == [f"CONFIGURING: {n} %, timing kernels" for n in (0, 40, 100)]
        values = {pair.key: pair.value for pair in said[1].values}
        assert values["code"] == "CONFIGURING" and values["progress"] == "40" and values["state"] == "unconfigured"
        rig.wait(lambda: rig.diagnostics[-1].status[0].message == "OK")


def test_a_first_start_says_what_it_does(monkeypatch):
    """Loading and compiling take a minute on a slow machine, in which a user would take the node for hung."""
    done: list[str] = []
    pipeline = SimpleNamespace(warm_up=lambda: done.append("pipeline"), close=lambda: done.append("closed"))
    monkeypatch.setattr(Pipeline, "from_config", lambda config, on_progress: done.append("loaded") or pipeline)
    monkeypatch.setattr(sam3d_node, "warm_up", lambda: done.append("tracker"))
    monkeypatch.setattr(sam3d_node.rebuild, "warm_up", lambda: done.append("physics"))
    monkeypatch.setattr(sam3d_node, "exempt_from_collection", lambda: None)

    def say(percent, what):
        done.append(f"{percent} % {what[:4]}")

    assert sam3d_node.load_pipeline(Settings(), say) is pipeline
    assert done == ["0 % the ", "loaded", "0 % code", "pipeline", "33 % code", "tracker", "66 % code", "physics"]
    done.clear()
    assert sam3d_node.load_pipeline(Settings(physics=False), say) is pipeline
    assert done[2:] == ["0 % code", "pipeline", "50 % code", "tracker"]


@pytest.mark.timeout(120)
def test_what_is_not_built_is_named(ros):
    with Rig(activate=False) as rig:
        def load(settings):
            raise Fault(FaultCode.ENGINE_NOT_BUILT, "fp16, for Orin")

        rig.node._load = load
        assert rig.node.trigger_configure() == FAILURE
        rig.wait(lambda: "ENGINE_NOT_BUILT" in rig.codes())


@pytest.mark.timeout(120)
def test_build_only_never_activates(ros):
    with Rig(activate=False, build_only=True) as rig:
        assert rig.node.trigger_configure() == SUCCESS
        assert rig.node.trigger_activate() == FAILURE


@pytest.mark.timeout(120)
def test_a_build_ends_with_ros(ros, monkeypatch):
    with Rig(activate=False) as rig:
        def load(settings):
            with monkeypatch.context() as patch:
                patch.setattr(type(rig.node.context), "ok", lambda context: False)
                with pytest.raises(ExternalShutdownException):
                    rig.node._on_progress(10, "timing kernels")
                raise ExternalShutdownException

        rig.node._load = load
        assert rig.node.trigger_configure() == FAILURE
