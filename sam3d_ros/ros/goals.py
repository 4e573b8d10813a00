"""The server of the action `reconstruct`: goals that wait for an image, feedback and results."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node

from sam3d_ros.action import Reconstruct

from ..perception.faults import Fault

# Share of the work that is done when a stage begins.
_PROGRESS = {"WAITING": 0.0, "EVIDENCE": 0.1, "INFERENCE": 0.3, "SURFACE": 0.7, "DONE": 1.0}
_RESULTS_KEPT = 10      # seconds, with their meshes: clients ask for them at once


@dataclass(frozen=True)
class _Waiting:
    """A goal for which there is no image yet, and when it was accepted (monotonic, s)."""

    goal: ServerGoalHandle
    since: float


class Goals:
    """Goals that came in.  `report`, `finish` and `abort` may be called from any thread.

    is_active: whether goals are accepted; on_accepted: called with each of them in the queue
    """

    def __init__(self, node: Node, is_active: Callable[[], bool], on_accepted: Callable[[], None]):
        self._node = node
        self._is_active = is_active
        self._on_accepted = on_accepted
        self._waiting: list[_Waiting] = []
        self._server = ActionServer(
            node, Reconstruct, "reconstruct", execute_callback=lambda goal: Reconstruct.Result(),
            goal_callback=self._judge, handle_accepted_callback=self._enqueue,
            cancel_callback=lambda goal: CancelResponse.ACCEPT, result_timeout=_RESULTS_KEPT)

    def destroy(self) -> None:
        """Destroy the server."""
        self._server.destroy()

    def serve(self, start: Callable[[ServerGoalHandle], bool], timeout: float, lack: Callable[[], Fault]) -> None:
        """Start the goals that can be started; give up those that were cancelled, or have waited for `timeout` seconds.

        start: whether a goal was started; lack: why there is no image
        """
        now = time.monotonic()
        for waiting in [*self._waiting]:
            if not start(waiting.goal):
                if not waiting.goal.is_cancel_requested and now - waiting.since <= timeout:
                    continue
                self.abort(waiting.goal, str(lack()))
            self._waiting.remove(waiting)

    def clear(self) -> list[ServerGoalHandle]:
        """Empty the queue; the goals that were in it."""
        goals = [waiting.goal for waiting in self._waiting]
        self._waiting.clear()
        return goals

    def report(self, goal: ServerGoalHandle, stage: str) -> None:
        """Tell the goal's client which stage has begun."""
        goal.publish_feedback(Reconstruct.Feedback(stage=stage, progress=_PROGRESS[stage]))

    def abort(self, goal: ServerGoalHandle, reason: str) -> None:
        """Tell the goal's client why it came to nothing."""
        self.finish(goal, Reconstruct.Result(success=False, message=reason))

    def finish(self, goal: ServerGoalHandle, result: Reconstruct.Result) -> None:
        """Deliver a result, in the executor, unless ROS has been shut down.

        The goal begins to execute only here: waiting in an execute callback of rclpy either blocks the executor or
        spins it.  And it begins in the executor's thread, where requests to cancel it come in as well.
        """
        def deliver(handle: ServerGoalHandle) -> Reconstruct.Result:
            if handle.is_cancel_requested:
                handle.canceled()
                return result if result.success else Reconstruct.Result(message="cancelled")
            if result.success:
                handle.succeed()
            else:
                handle.abort()
            return result
        if self._node.executor and self._node.context.ok():
            self._node.executor.create_task(goal.execute, deliver)

    def _judge(self, goal: Reconstruct.Goal) -> GoalResponse:
        if not self._is_active():
            self._node.get_logger().warning("goal rejected: the node is not active")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _enqueue(self, goal: ServerGoalHandle) -> None:
        self.report(goal, "WAITING")
        self._waiting.append(_Waiting(goal, time.monotonic()))
        self._on_accepted()
