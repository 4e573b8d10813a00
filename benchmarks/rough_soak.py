"""Half an hour with a bad camera and a restless user: does the node survive it, and never show what is gone?

See benchmarks/README.md.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from tqdm import tqdm

from benchmarks.harness import START_TIMEOUT, common_arguments, read_records, statistics, wait_until, workspace
from benchmarks.node_run import NodeRun, Result
from benchmarks.scenes import tabletop
from benchmarks.soak import MAX_GROWTH_MIB_PER_MINUTE, Sample, memory_growth, take_sample
from sam3d_ros.evaluation.environment import describe_environment, describe_model, report_path, write_report
from sam3d_ros.evaluation.simulated import SEEDS
from sam3d_ros.perception.pipeline import PipelineConfig
from sam3d_ros.reconstruct import add_pipeline_arguments, pipeline_config
from sam3d_ros.scene.measurement import RESTLESS_NS
from sam3d_ros.terminal import in_range

CAMERA_RATE, OBJECTS = 30.0, 5
# Seconds, on average: from one change of parameters, and from one trip through the lifecycle, to the next.
CHANGE_PERIOD, CYCLE_PERIOD = 5.0, 40.0
SAMPLE_PERIOD = 2.0
RESTART_AT = 0.25               # of the run: the process is ended and started anew
ANSWER_TIMEOUT = 60.0           # seconds, for a service: a configuration loads the model
# Bars.
MAX_AGE_S, MAX_SPREAD = 1.0, 2  # of a result when it is received; of threads and open files over the second half
CHANGES = {"max_rate": (0.0, 30.0, 10.0), "reconstruct_hz": (2.0, 0.5, 20.0), "input_timeout": (5.0, 0.5),
           "enabled": (True, True, False), "classes": ("", "", "nothing"), "publish_markers": (True, False),
           "publish_debug_image": (True, False), "publish_object_points": (True, False)}
CALM = {name: values[0] for name, values in CHANGES.items()}


class User(rclpy.node.Node):
    """Changes parameters and lifecycle states at random, and counts the faults that are diagnosed."""

    def __init__(self, seed: int):
        super().__init__("restless_user")
        self.rng = np.random.default_rng(seed)
        self.faults: Counter = Counter()
        self.actions: Counter = Counter()
        self._parameters = self.create_client(SetParameters, "sam3d_node/set_parameters")
        self._state = self.create_client(ChangeState, "sam3d_node/change_state")
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def change(self) -> None:
        """Set one parameter to another value."""
        name = str(self.rng.choice([*CHANGES]))
        self.set({name: CHANGES[name][int(self.rng.integers(len(CHANGES[name])))]})

    def set(self, values: dict[str, Any]) -> None:
        """Set parameters; RuntimeError if they are refused."""
        self.actions["parameters"] += 1
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
        refused = [result.reason for result in self._call(self._parameters, request).results if not result.successful]
        if refused:
            raise RuntimeError("; ".join(refused))

    def cycle(self, reloads: bool) -> None:
        """Deactivate and activate the node, calm; or unload it altogether and load it again."""
        self.set(CALM)
        steps = [Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE]
        if reloads:
            steps[1:1] = [Transition.TRANSITION_CLEANUP, Transition.TRANSITION_CONFIGURE]
        self.actions["lifecycle"] += 1
        for step in steps:
            if not self._call(self._state, ChangeState.Request(transition=Transition(id=step))).success:
                raise RuntimeError(f"transition {step} failed")

    def _call(self, client: Any, request: Any) -> Any:
        if not client.wait_for_service(ANSWER_TIMEOUT):
            raise TimeoutError(f"{client.srv_name} is not there")
        future = client.call_async(request)
        rclpy.spin_until_future_complete(self, future, timeout_sec=ANSWER_TIMEOUT)
        if not future.done():
            raise TimeoutError(f"{client.srv_name} does not answer")
        return future.result()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.faults.update(pair.value for status in message.status for pair in status.values if pair.key == "code")


def measure(config: PipelineConfig, minutes: float, cores: int, seed: int) -> dict[str, Any]:
    """Run it; samples of the last process at all times and as newly loaded, results, and what was done and diagnosed.
    """
    without = [tabletop(OBJECTS, without=label) for label in range(1, OBJECTS + 1)]
    with workspace(cores) as folder, \
            NodeRun(folder, config, tabletop(OBJECTS), CAMERA_RATE, rough=seed, without=without) as run:
        rclpy.init()
        user = User(seed)
        try:
            wait_until(lambda: bool(run.results()), [run.node], START_TIMEOUT, "result")
            samples, loaded = _trouble(run, user, minutes * 60)
            return {"samples": samples, "loaded": loaded, "results": run.results(),
                    "sent": read_records(run.camera_log),
                    "received_ns": [r["received_ns"] for r in read_records(folder / "results.jsonl")],
                    "faults": dict(user.faults), "actions": dict(user.actions)}
        finally:
            user.destroy_node()
            rclpy.try_shutdown()


def _trouble(run: NodeRun, user: User, seconds: float) -> tuple[list[Sample], list[Sample]]:
    """Samples of the last process at all times, and each time that it has just loaded its model."""
    start, samples, loaded, restarted = time.monotonic(), [], [], False
    next_change, next_cycle, next_sample = CHANGE_PERIOD, CYCLE_PERIOD, 0.0

    def reload() -> None:
        user.cycle(reloads=True)
        loaded.append(take_sample(run.node.pid, time.monotonic() - start))

    with tqdm(total=round(seconds), unit="s") as bar:
        while (elapsed := time.monotonic() - start) < seconds:
            bar.update(int(elapsed) - bar.n)
            run.check_alive()
            rclpy.spin_once(user, timeout_sec=0.1)
            if not restarted and elapsed > RESTART_AT * seconds:
                run.restart_node()
                user.set({})            # answered as soon as it is there
                user.actions["restarts"] += 1
                restarted, samples, loaded = True, [], []
                reload()
            elif elapsed >= next_cycle:
                if user.rng.random() < 0.5:
                    reload()
                else:
                    user.cycle(reloads=False)
                next_cycle = elapsed + user.rng.exponential(CYCLE_PERIOD)
            elif elapsed >= next_change:
                user.change()
                next_change = elapsed + user.rng.exponential(CHANGE_PERIOD)
            elif elapsed >= next_sample:
                samples.append(take_sample(run.node.pid, elapsed))
                next_sample = elapsed + SAMPLE_PERIOD
    reload()
    return samples, loaded


def judge(samples: list[Sample], loaded: list[Sample], ages_s: list[float], when_gone: list[tuple[Result, int]],
          faults: dict[str, int]) -> dict[str, Any]:
    """Each bar's figure and whether it is kept.

    samples: at all times; loaded: as newly loaded.  Memory is judged by the latter, the former leap by tens of MiB.
    when_gone: as of `results_when_gone`
    """
    late = samples[len(samples) // 2:]
    figures = {
        "memory_growth_mib_per_minute": (round(memory_growth(loaded), 3), MAX_GROWTH_MIB_PER_MINUTE),
        "threads": (int(np.ptp([sample.threads for sample in late])), MAX_SPREAD),
        "open_files": (int(np.ptp([sample.open_files for sample in late])), MAX_SPREAD),
        "oldest_result_s": (round(max(ages_s), 3), MAX_AGE_S),
        "gone_objects_shown_as_fresh": (sum(result.fresh > shown for result, shown in when_gone), 0),
        "internal_errors": (faults.get("INTERNAL_ERROR", 0), 0)}
    return {name: {"value": value, "limit": limit, "passed": value <= limit}
            for name, (value, limit) in figures.items()}


def results_when_gone(sent: list[dict[str, Any]], results: list[Result]) -> list[tuple[Result, int]]:
    """The results of images without one of the objects, which was last there longer ago than the tracker may take to
    believe that it is gone, each with the number of objects that its image shows."""
    shown, complete_ns = {}, 0
    for image in sent:
        if image["shown"] == OBJECTS:
            complete_ns = image["sent_ns"]
        elif image["sent_ns"] - complete_ns > RESTLESS_NS:
            shown[image["stamp_ns"]] = image["shown"]
    return [(result, shown[result.stamp_ns]) for result in results if result.stamp_ns in shown]


def ages(sent: list[dict[str, Any]], results: list[Result], received_ns: list[int]) -> list[float]:
    """Seconds from sending an image to receiving its result: its stamp may jump, the time when that began does not.

    The camera notes an image when it has sent it: the last results may be of one that it had not noted yet.
    """
    sent_ns = {record["stamp_ns"]: record["sent_ns"] for record in sent}
    pairs = list(zip(results, received_ns, strict=False))
    while pairs and pairs[-1][0].stamp_ns not in sent_ns:
        pairs.pop()
    return [(received - sent_ns[result.stamp_ns]) / 1e9 for result, received in pairs]


def main() -> int:
    """Run the benchmark; exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    common_arguments(parser, "rough_soak")
    add_pipeline_arguments(parser)
    parser.add_argument("--minutes", type=in_range(float, 0.5, 1e5), default=30.0,
                        help="how long (default: %(default)s; --quick: 1)")
    parser.add_argument("--seed", type=in_range(int, *SEEDS), default=0,
                        help="decides what goes wrong when (default: %(default)s)")
    args = parser.parse_args()
    minutes = 1.0 if args.quick else args.minutes
    out = report_path(args)
    environment, model = describe_environment(args.cores), describe_model(args.model)
    run = measure(pipeline_config(args), minutes, args.cores, args.seed)
    ages_s = ages(run["sent"], run["results"], run["received_ns"])
    when_gone = results_when_gone(run["sent"], run["results"])
    bars = judge(run["samples"], run["loaded"], ages_s, when_gone, run["faults"])
    passed = all(bar["passed"] for bar in bars.values())
    write_report(out, environment, {
        "benchmark": "rough_soak", "quick": args.quick, **model, "engine": run["results"][-1].engine,
        "minutes": minutes, "camera_rate_hz": CAMERA_RATE, "objects": OBJECTS, "results": len(run["results"]),
        "images_sent": len(run["sent"]), "results_when_an_object_is_gone": len(when_gone), "age_s": statistics(ages_s),
        "processing_ms": statistics([result.processing_ms for result in run["results"]]), "faults": run["faults"],
        "actions": run["actions"], "bars": bars, "passed": passed,
        "memory_slope_at_all_times_mib_per_minute": round(memory_growth(run["samples"][len(run["samples"]) // 2:]), 3),
        "loaded": [asdict(s) for s in run["loaded"]], "samples": [asdict(s) for s in run["samples"]]})
    for name, bar in bars.items():
        print(f"{'ok    ' if bar['passed'] else 'FAILED'} {name}: {bar['value']} (limit {bar['limit']})")
    print(f"{len(run['results'])} results, {run['actions']}, faults {run['faults']}; report: {out}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
