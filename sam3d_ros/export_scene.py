"""`sam3d export-scene`: rebuilt objects in, a scene for a simulator out."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sam3d_ros.scene.convex import MAX_PIECES
from sam3d_ros.scene.export import WRITERS, clear_scene
from sam3d_ros.scene.layout import DENSITY, read_scene
from sam3d_ros.scene.physics import TOUCH, BodyReport
from sam3d_ros.terminal import in_range

_DENSITIES = (1, 30_000)     # kg/m^3, from foams to the heaviest metals: simulators refuse what weighs nothing
_PIECES = (1, 1000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    parser.add_argument("result", metavar="RESULT", type=Path,
                        help="a folder that `sam3d reconstruct` wrote, or its objects.json")
    parser.add_argument("-o", "--out", type=Path, default=Path("sam3d_scene"), metavar="DIR",
                        help="where the files go (default: %(default)s)")
    parser.add_argument("--format", nargs="+", choices=tuple(WRITERS), default=["sdf"],
                        help="sdf for Gazebo, mjcf for MuJoCo, gltf, usd for Isaac Sim (default: sdf)")
    parser.add_argument("--density", type=in_range(float, *_DENSITIES), default=DENSITY, metavar="KG_M3",
                        help="mass of the objects per volume (default: %(default)s)")
    parser.add_argument("--pieces", type=in_range(int, *_PIECES), default=MAX_PIECES, metavar="N",
                        help="convex pieces of an object at most, twice as many of a thin-walled one; 1: its hull "
                             "(default: %(default)s)")
    parser.add_argument("--as-seen", action="store_true", help="leave the poses: things may float or overlap")


def run(args: argparse.Namespace) -> int:
    """Write the scene in every format asked for; what is doubtful, and what will not stay where it is, is named on
    stderr."""
    scene = read_scene(args.result, args.density, args.pieces, args.as_seen)
    for item in scene.objects:
        if item.is_doubtful:
            print(f"sam3d: {item.name} is marked LOW_QUALITY in the result: its shape may be wrong", file=sys.stderr)
        if item.settled and (unrest := restlessness(item.settled)):
            print(f"sam3d: {item.name} {unrest}", file=sys.stderr)
    clear_scene(args.out)
    for name in args.format:
        print(f"{WRITERS[name](scene, args.out)}: {len(scene.objects)} objects, "
              f"{sum(item.mass for item in scene.objects):.2f} kg")
    return 0


def restlessness(report: BodyReport) -> str:
    """Why an object will not stay where it is in a simulator; empty if it is at rest."""
    if report.gap_after > TOUCH:
        return f"floats {report.gap_after * 1e3:.0f} mm above what is below it, and will fall"
    if report.penetration_after > TOUCH:
        return f"is {report.penetration_after * 1e3:.0f} mm inside the table or another object, and will be pushed out"
    return "" if report.is_stable else "does not stand firmly, and may tip over or roll"
