"""`sam3d reconstruct`: frame folders in, object meshes and poses out."""
from __future__ import annotations

import argparse
import collections
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from sam3d_ros.engine_cli import ProgressLine
from sam3d_ros.perception.config import DEFAULTS, RANGES, PipelineConfig
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.folder import clear_objects, folder_name, read_frame_folder, write_objects
from sam3d_ros.perception.frame import Frame
from sam3d_ros.perception.masks import select
from sam3d_ros.perception.objects import Rejection
from sam3d_ros.perception.pipeline import Pipeline, PipelineResult
from sam3d_ros.perception.tabletop import with_tabletop_masks
from sam3d_ros.runtime.engine import ENGINE_CHOICES, MODEL_HELP, PRECISIONS
from sam3d_ros.scene.rebuild import reconstruct, warm_up
from sam3d_ros.terminal import in_range, printable

MOST_LISTED = 5     # objects rejected for one reason, each on a line of its own; more are summed up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    parser.add_argument("folders", metavar="FRAME_DIR", nargs="+", type=Path, help="frame folder")
    parser.add_argument("-o", "--out", type=Path, default=Path("sam3d_out"),
                        help="results go to OUT/<name of FRAME_DIR>/ (default: %(default)s)")
    parser.add_argument("--tabletop", action="store_true",
                        help="without masks.png: make the masks from depth, of what stands apart on a table")
    add_pipeline_arguments(parser)


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `pipeline_config` reads; other subcommands that reconstruct take them too."""
    group = parser.add_argument_group("reconstruction")
    group.add_argument("--model", default=DEFAULTS.model,
                       help=f"{MODEL_HELP} (default: %(default)s)")
    group.add_argument("--engine", choices=ENGINE_CHOICES, default=DEFAULTS.engine,
                       help="what runs the student (default: %(default)s)")
    group.add_argument("--precision", choices=PRECISIONS, default=DEFAULTS.precision,
                       help="arithmetic of the engine (default: %(default)s)")
    group.add_argument("--threads", type=in_range(int, *RANGES["threads"]), default=DEFAULTS.threads, metavar="N",
                       help="CPU threads of engine and surfaces, 0 for all cores (default: %(default)s)")
    group.add_argument("--max-objects", type=in_range(int, *RANGES["max_objects"]), default=DEFAULTS.max_objects,
                       metavar="N", help="objects per frame, the largest masks first (default: %(default)s)")
    group.add_argument("--max-faces", type=in_range(int, *RANGES["max_faces"]), default=DEFAULTS.max_faces,
                       metavar="N", help="triangles per mesh (default: %(default)s)")
    group.add_argument("--no-symmetry", dest="symmetry", action="store_false",
                       help="do not complete hidden sides by planes of symmetry")


def pipeline_config(args: argparse.Namespace) -> PipelineConfig:
    """The configuration that the options of `add_pipeline_arguments` describe."""
    return PipelineConfig(model=args.model, engine=args.engine, precision=args.precision, threads=args.threads,
                          max_objects=args.max_objects, max_faces=args.max_faces, symmetry=args.symmetry)


def run(args: argparse.Namespace) -> int:
    """Reconstruct every folder; a bad one, or one that no object comes of, is named at once and does not stop the
    others, but makes the exit status 1."""
    outputs = output_folders(args.folders, args.out)
    failed = False
    with closing(Pipeline.from_config(pipeline_config(args), ProgressLine())) as pipeline:
        pipeline.warm_up()          # so that the first frame's latency is not the compiler's
        warm_up()
        for folder, output in tqdm(outputs.items(), unit="frame", disable=not sys.stderr.isatty()):
            try:
                clear_objects(output)
                tqdm.write(printable(reconstruct_folder(pipeline, folder, output, args.tabletop)))
            except (Fault, OSError) as error:
                tqdm.write(printable(f"sam3d: error: {folder}: {error}"), file=sys.stderr)
                failed = True
    return 1 if failed else 0


def output_folders(folders: list[Path], out: Path) -> dict[Path, Path]:
    """Frame folder -> folder for its results.

    Raises Fault(FRAME_FOLDER_INVALID) where two frame folders of one name would overwrite each other's results.
    """
    outputs = {folder: out / folder_name(folder) for folder in folders}
    counts = collections.Counter(outputs.values())
    clashing = [str(folder) for folder, output in outputs.items() if counts[output] > 1]
    if clashing:
        raise Fault(FaultCode.FRAME_FOLDER_INVALID, f"these folders have the same name: {', '.join(clashing)}")
    return outputs


def reconstruct_folder(pipeline: Pipeline, folder: Path, output: Path, is_tabletop: bool = False) -> str:
    """Reconstruct one frame folder into `output`; objects that were rejected are named on stderr.

    is_tabletop: masks are made from depth, those of the folder are not read
    Returns a line for the user. Raises Fault for a bad folder or frame, and NOTHING_REBUILT; OSError.
    """
    frame = read_frame_folder(folder, has_masks=not is_tabletop)
    if frame.depth is None and is_tabletop:
        raise Fault(FaultCode.FRAME_FOLDER_INVALID, f"{folder}: no depth.png: --tabletop makes masks from it")
    if frame.depth is None:
        _note(folder, "no depth.png: shapes from colour and masks alone, sizes are guesses")
    start = time.perf_counter()
    if is_tabletop:
        frame = with_tabletop_masks(frame)
    chosen, warnings = _chosen(frame, pipeline.config.max_objects)
    result = reconstruct(pipeline, chosen)
    latency_ms = (time.perf_counter() - start) * 1e3
    ids = [f"object_{number}" for number in range(1, len(result.objects) + 1)]
    write_objects(output, result.objects, ids, latency_ms)
    for line in (*map(str, warnings + result.warnings), *rejection_lines(result.rejections)):
        _note(folder, line)
    if not result.objects:
        raise Fault(FaultCode.NOTHING_REBUILT, f"0 of {len(frame.instances)} objects")
    return summary(folder, output, result, len(frame.instances), latency_ms)


def _note(folder: Path, text: str) -> None:
    tqdm.write(printable(f"sam3d: {folder}: {text}"), file=sys.stderr)


def _chosen(frame: Frame, max_objects: int) -> tuple[Frame, tuple[Fault, ...]]:
    """The frame with the instances to reconstruct, the `max_objects` largest, and what to say of the others.

    Those without a pixel are kept, so that the pipeline says of each that it is not in the image.
    Raises Fault MASK_EMPTY, MASK_ALL_FOREGROUND.
    """
    selected = select(frame.labels, frame.instances, max_objects)
    return replace(frame, instances=selected.instances + selected.absent), selected.warnings


def rejection_lines(rejections: Sequence[Rejection]) -> Iterator[str]:
    """A line for each rejected object, or, where there are more than MOST_LISTED, one for all of a fault."""
    groups = collections.defaultdict(list)
    for rejection in rejections:
        groups[rejection.fault.code].append(rejection)
    for code, group in groups.items():
        if len(group) <= MOST_LISTED:
            yield from (f"object {rejection.label} rejected: {rejection.fault}" for rejection in group)
        else:
            labels = ", ".join(str(rejection.label) for rejection in group[:MOST_LISTED])
            yield f"{len(group)} objects ({labels}, ...) rejected: {Fault(code)}"


def summary(folder: Path, output: Path, result: PipelineResult, tried: int, latency_ms: float) -> str:
    """One line on a frame: where its result is, how many objects of how many, how long, and the name and largest
    extent of each."""
    names = ", ".join(f"{item.class_id or 'object'} {item.size.max() * 100:.1f} cm" for item in result.objects)
    return f"{folder} -> {output}: {len(result.objects)} of {tried} objects in {latency_ms:.0f} ms: {names}"
