"""Process: publishes a large mesh at a fixed rate and writes one JSON line for each message: what it cost."""
from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import rclpy
import trimesh
from rclpy.node import Node

from sam3d_ros.msg import ObjectMesh, ObjectMeshArray
from sam3d_ros.ros.images import stamp_message, to_array
from sam3d_ros.ros.qos import RESULTS

# A torus has half as many vertices as triangles, as any closed mesh about has.
MAJOR_SECTIONS, MINOR_SECTIONS = 200, 100       # 20k vertices, 40k triangles


def message_of(mesh: trimesh.Trimesh, stamp_ns: int) -> ObjectMeshArray:
    """One coloured object with an uncertainty at every vertex."""
    item = ObjectMesh(id="1", class_id="torus", watertight=True)
    item.vertices = to_array("f", mesh.vertices.astype(np.float32))
    item.triangles = to_array("I", mesh.faces.astype(np.uint32))
    item.vertex_rgba = to_array("B", np.full((len(mesh.vertices), 4), 200, np.uint8))
    item.vertex_std = to_array("f", np.full(len(mesh.vertices), 0.001, np.float32))
    message = ObjectMeshArray(objects=[item])
    message.header.stamp = stamp_message(stamp_ns)
    return message


def main() -> None:
    """Wait for a subscriber, then publish; the stamp is the moment before publish() is called."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rate", type=float, default=10.0, help="messages per second")
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    mesh = trimesh.creation.torus(0.1, 0.03, major_sections=MAJOR_SECTIONS, minor_sections=MINOR_SECTIONS)
    rclpy.init()
    node = Node("mesh_publisher")
    publisher = node.create_publisher(ObjectMeshArray, "objects", RESULTS)
    while not publisher.get_subscription_count():
        rclpy.spin_once(node, timeout_sec=0.05)
    with args.file.open("w") as file:
        for _ in range(args.count):
            start = time.perf_counter()
            message = message_of(mesh, 0)
            filled = time.perf_counter()
            stamp_ns = time.time_ns()
            message.header.stamp = stamp_message(stamp_ns)
            published = time.perf_counter()
            publisher.publish(message)
            line = {"stamp_ns": stamp_ns, "fill_ms": 1e3 * (filled - start),
                    "publish_ms": 1e3 * (time.perf_counter() - published)}
            print(json.dumps(line), file=file, flush=True)
            time.sleep(1 / args.rate)
    rclpy.shutdown()


if __name__ == "__main__":
    main()
