"""What a 20k-vertex ObjectMeshArray costs between two processes; see benchmarks/README.md."""
from __future__ import annotations

import argparse
import sys

from benchmarks.harness import START_TIMEOUT, common_arguments, read_records, statistics, wait_until, workspace
from benchmarks.mesh_publisher import MAJOR_SECTIONS, MINOR_SECTIONS
from sam3d_ros.evaluation.environment import describe_environment, report_path, write_report
from sam3d_ros.ros.processes import NodeProcess

RATE = 10.0
WARM_UP = 5                     # messages; the first ones map shared memory
MAX_PUBLISH_MS = 5.0            # bar: filling and publishing, median


def measure(count: int, cores: int) -> dict:
    """Costs in milliseconds of `count` messages."""
    with workspace(cores) as folder:
        sent_file, received_file = folder / "sent.jsonl", folder / "received.jsonl"
        with (NodeProcess("benchmarks.result_recorder", str(received_file), log=folder / "recorder.log") as recorder,
              NodeProcess("benchmarks.mesh_publisher", str(sent_file), "--rate", str(RATE), "--count",
                          str(count + WARM_UP), log=folder / "publisher.log") as publisher):
            publisher.wait(START_TIMEOUT + 2 * (count + WARM_UP) / RATE)
            wait_until(lambda: len(read_records(received_file)) == count + WARM_UP, [recorder], 10, "last message")
        sent, received = read_records(sent_file)[WARM_UP:], read_records(received_file)
    received_ns = {record["stamp_ns"]: record["received_ns"] for record in received}
    return {
        "fill_ms": statistics([record["fill_ms"] for record in sent]),
        "publish_ms": statistics([record["publish_ms"] for record in sent]),
        "fill_and_publish_ms": statistics([record["fill_ms"] + record["publish_ms"] for record in sent]),
        "publish_to_callback_ms": statistics([(received_ns[record["stamp_ns"]] - record["stamp_ns"]) / 1e6
                                              for record in sent]),
    }


def main() -> int:
    """Run the benchmark; exit status 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    common_arguments(parser, "message_cost")
    args = parser.parse_args()
    out = report_path(args)
    environment = describe_environment(args.cores)
    costs = measure(count=20 if args.quick else 300, cores=args.cores)
    passed = costs["fill_and_publish_ms"]["p50"] < MAX_PUBLISH_MS
    write_report(out, environment, {
        "benchmark": "message_cost", "quick": args.quick, "vertices": MAJOR_SECTIONS * MINOR_SECTIONS,
        "triangles": 2 * MAJOR_SECTIONS * MINOR_SECTIONS, "rate_hz": RATE, **costs,
        "bar": {"fill_and_publish_ms_p50": MAX_PUBLISH_MS}, "passed": passed})
    for name, figures in costs.items():
        print(f"{name:24} p50 {figures['p50']:7.2f}  p95 {figures['p95']:7.2f}  p99 {figures['p99']:7.2f}")
    print(f"{'passed' if passed else 'FAILED'}: fill and publish below {MAX_PUBLISH_MS:g} ms; report: {out}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
