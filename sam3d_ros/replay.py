"""`sam3d replay`: every complete set of images and masks in a recorded bag, reconstructed offline into a new bag."""
from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sensor_msgs.msg import Image
from tqdm import tqdm

from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.folder import folder_name
from sam3d_ros.perception.frame import Frame, check_frame
from sam3d_ros.perception.masks import Segmentation, select
from sam3d_ros.perception.pipeline import Pipeline
from sam3d_ros.perception.tabletop import with_tabletop_masks
from sam3d_ros.reconstruct import add_pipeline_arguments, pipeline_config
from sam3d_ros.ros.bags import BAG_SUFFIXES, STORAGES, BagMessage, BagReader, BagWriter
from sam3d_ros.ros.frames import decode_frame, decode_masks_or_none, input_types, message_bytes, type_name
from sam3d_ros.ros.images import DEPTH_ENCODINGS, stamp_ns
from sam3d_ros.ros.messages import MeshSchedule, PlacedObject, object_mesh_array, pose_array
from sam3d_ros.ros.parameters import MASK_FORMATS, Settings
from sam3d_ros.ros.segmentation import mask_encodings
from sam3d_ros.ros.synchroniser import CAMERA_INFO, DEPTH, DETECTIONS, IMAGE, MASKS, Match, Synchroniser
from sam3d_ros.scene import rebuild
from sam3d_ros.scene.resting import Resting
from sam3d_ros.scene.tracker import Tracker
from sam3d_ros.terminal import UserError, in_range, printable

OBJECTS_TOPIC, OBJECTS_TYPE = "/objects", "sam3d_ros/msg/ObjectMeshArray"
POSES_TOPIC, POSES_TYPE = "/poses", "geometry_msgs/msg/PoseArray"
# Beginnings of the encodings of an image, the likeliest first: those that only ROS's cv_bridge decodes come after the
# others, and grey ones last, since masks have these, too.
IMAGE_ENCODINGS = (("rgb8", "bgr8", "rgba8", "bgra8", "8UC3", "8UC4"), ("bayer_", "yuv", "uyvy", "yuyv", "nv"),
                   ("mono8",))
# Stream -> option that names its topic
OPTIONS = {IMAGE: "--image", DEPTH: "--depth", CAMERA_INFO: "--camera-info", MASKS: "--segmentation",
           DETECTIONS: "--detections"}
HISTORY_NS = 10_000_000_000       # a recording can wait for a slow detector longer than a robot can


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    default = Settings()
    parser.add_argument("bag", metavar="BAG", type=Path, help="folder of a recording, or its .db3 or .mcap file")
    parser.add_argument("-o", "--out", type=Path, help="folder of the new bag (default: <name of BAG>_sam3d)")
    parser.add_argument("--storage", choices=tuple(STORAGES), help="of the new bag (default: as BAG)")
    parser.add_argument("--keep-input", action="store_true", help="copy all messages of BAG into the new bag too")
    topics = parser.add_argument_group("topics", "found by type, encoding and name where that leaves one choice")
    for stream, option in OPTIONS.items():
        topics.add_argument(option, dest=stream, metavar="TOPIC")
    topics.add_argument("--mask-format", choices=MASK_FORMATS, default=default.mask_format,
                        help="what the segmentation topic holds (default: %(default)s)")
    topics.add_argument("--tabletop", action="store_true",
                        help="for a bag without masks: make them from depth, of what stands apart on a table")
    topics.add_argument("--raw-image", action="store_true", help="the image is not rectified: use K of camera_info")
    low, high = (Settings.__dataclass_fields__["sync_slop"].metadata[end] for end in ("low", "high"))
    topics.add_argument("--slop", type=in_range(float, low, high), default=default.sync_slop, metavar="SECONDS",
                        help="largest difference between the stamps of a set (default: %(default)s)")
    add_pipeline_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Reconstruct the bag; raises Fault where it cannot be read, or holds no complete set, and UserError."""
    settings = Settings(mask_format=args.mask_format, image_is_rectified=not args.raw_image, sync_slop=args.slop,
                        max_objects=args.max_objects)
    given = {stream: topic for stream in OPTIONS if (topic := getattr(args, stream))}
    if args.tabletop and (given.keys() & {MASKS, DETECTIONS} or args.mask_format != Settings().mask_format):
        raise UserError("--tabletop makes the masks: leave out --segmentation, --detections and --mask-format")
    out = args.out or default_out(args.bag)
    with BagReader(args.bag) as reader:
        streams = input_types(settings, with_detections=DETECTIONS in given)
        if args.tabletop:
            del streams[MASKS]
        topics = choose_topics(describe_topics(reader), streams, given, args.mask_format)
        with BagWriter(out, args.storage or reader.storage) as writer:
            replay = Replay(Pipeline.from_config(pipeline_config(args)), settings, streams, writer)
            try:
                replay.run(reader, topics, args.keep_input)
            finally:
                replay.pipeline.close()
    for line in replay.problems():
        print(f"sam3d: {printable(line)}", file=sys.stderr)
    print(f"{out}: {replay.object_count} objects in {replay.set_count} images")
    return 0


def default_out(bag: Path) -> Path:
    """Name of the new bag, in the working folder: that of the old one, which may hold dots if it is a folder's."""
    name = folder_name(bag)
    return Path(f"{Path(name).stem if bag.is_file() and bag.suffix in BAG_SUFFIXES else name}_sam3d")


class Topic(NamedTuple):
    """A topic of a bag; encoding: of its first message if it holds images, else empty."""

    name: str
    type: str
    encoding: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.type}{', ' * bool(self.encoding)}{self.encoding})"


def describe_topics(reader: BagReader) -> list[Topic]:
    """The topics of a bag that hold messages."""
    described = []
    for name, kind in sorted(reader.topics.items()):
        first = next(reader.messages([name]), None)
        if first is not None:
            encoding = reader.decode(first, Image).encoding if kind == type_name(Image) else ""
            described.append(Topic(name, kind, encoding))
    return described


def choose_topics(topics: Sequence[Topic], classes: Mapping[str, type], given: Mapping[str, str],
                  mask_format: str) -> dict[str, str]:
    """Stream -> name of its topic: as given, else the only one that fits and is no other stream's.

    Raises Fault(BAG_TOPICS_UNCLEAR) where none or several fit; its detail lists the topics.
    """
    known = f"; the bag holds {', '.join(map(str, topics)) or 'no message'}"
    chosen = {}
    for stream, message_class in classes.items():
        fitting = [topic for topic in topics if topic.type == type_name(message_class)]
        if stream in given:
            fitting = [topic for topic in fitting if topic.name == given[stream]]
            if given[stream] in chosen.values():
                raise Fault(FaultCode.BAG_TOPICS_UNCLEAR, f"{given[stream]} is given for two streams")
        else:
            taken = {*given.values(), *chosen.values()}
            free = [topic for topic in fitting if topic.name not in taken]
            fitting = _narrow(stream, free, chosen.get(IMAGE), mask_format)
        if len(fitting) != 1:
            wanted = f"{given[stream]} of type {type_name(message_class)}" if stream in given else f"topic for {stream}"
            raise Fault(FaultCode.BAG_TOPICS_UNCLEAR, f"{'several fit as' if fitting else 'no'} {wanted}{known}")
        chosen[stream] = fitting[0].name
    return chosen


def _narrow(stream: str, topics: list[Topic], image_topic: str | None, mask_format: str) -> list[Topic]:
    """The likely ones among topics of the right type: by encoding, and, as long as several are left, by name."""
    if stream == IMAGE:
        kinds = ([topic for topic in topics if topic.encoding.startswith(kind)] for kind in IMAGE_ENCODINGS)
        topics = next(filter(None, kinds), [])
    if stream == DEPTH:
        topics = [topic for topic in topics if topic.encoding in DEPTH_ENCODINGS]
    if stream == MASKS and (encodings := mask_encodings(mask_format)):
        topics = [topic for topic in topics if topic.encoding in encodings]
    hints = [lambda name: name.rpartition("/")[2] == stream]
    if stream == DEPTH:
        hints.append(lambda name: "depth" in name)
    elif stream == CAMERA_INFO:
        hints.append(lambda name: name.rpartition("/")[0] == image_topic.rpartition("/")[0])
    else:
        hints.append(lambda name: "depth" not in name)
    for hint in hints:
        likely = [topic for topic in topics if hint(topic.name)]
        if len(topics) > 1 and likely:
            topics = likely
    return topics


class Replay:
    """Feeds a bag through synchroniser and pipeline and writes the results.  Without a stream of masks they are made
    from depth.

    set_count, object_count: complete sets that were reconstructed, and objects in them
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, classes: Mapping[str, type], writer: BagWriter):
        self.pipeline = pipeline
        self.set_count = self.object_count = 0
        self._settings = settings
        self._classes = classes
        self._is_tabletop = not classes.keys() & {MASKS, DETECTIONS}
        self._writer = writer
        self._tracker = Tracker(resting=Resting())
        self._schedule = MeshSchedule()
        self._first_faults: dict[FaultCode, Fault] = {}
        self._fault_counts: collections.Counter[FaultCode] = collections.Counter()
        self._synchroniser = Synchroniser(list(classes), slop_ns=int(settings.sync_slop * 1e9), history_ns=HISTORY_NS,
                                          max_bytes=settings.history_bytes)

    def run(self, reader: BagReader, topics: Mapping[str, str], keep_input: bool) -> None:
        """Reconstruct the sets that `topics`, stream -> name, hold, each at the time when it was complete.

        Raises Fault: the bag cannot be read, or not one set could be reconstructed.
        """
        self._writer.add_topic(OBJECTS_TOPIC, OBJECTS_TYPE)
        self._writer.add_topic(POSES_TOPIC, POSES_TYPE)
        streams = {topic: stream for stream, topic in topics.items()}
        wanted = list(streams)
        if keep_input:
            wanted = [topic for topic in reader.topics if topic not in (OBJECTS_TOPIC, POSES_TOPIC)]
            for topic in wanted:
                self._writer.add_copied_topic(reader.connection(topic))
        # Images that come before the first camera_info are as good as later ones.
        self._add(reader, CAMERA_INFO, next(reader.messages([topics[CAMERA_INFO]])))
        end = 0.0
        total = sum(reader.counts[topic] for topic in wanted)
        for message in tqdm(reader.messages(wanted), total=total, unit="message", disable=not sys.stderr.isatty()):
            if keep_input:
                self._writer.copy(message)
            if message.topic in streams:
                self._add(reader, streams[message.topic], message)
                end = message.time_ns / 1e9
        if not self.set_count:
            unmatched = Fault(FaultCode.STAMPS_DO_NOT_MATCH, self._synchroniser.describe(end))
            raise next(iter(self._first_faults.values()), unmatched)

    def problems(self) -> list[str]:
        """A line on each kind of fault that a part of the bag had."""
        return [f"{self._fault_counts[code]} times, first: {fault}" for code, fault in self._first_faults.items()]

    def _add(self, reader: BagReader, stream: str, message: BagMessage) -> None:
        decoded = reader.decode(message, self._classes[stream])
        try:
            match = self._synchroniser.add(stream, stamp_ns(decoded.header.stamp), decoded,
                                           message_bytes(decoded), now=message.time_ns / 1e9)
            if match:
                self._work(match, message.time_ns)
        except Fault as fault:
            self._note(fault)
            if fault.code is FaultCode.CLOCK_JUMPED_BACK:
                self._tracker.clear()

    def _work(self, match: Match, time_ns: int) -> None:
        """Write the objects of a set: known ones are followed, and what is new or doubtful is reconstructed at once."""
        frame = decode_frame(match, self._settings)
        segmentation = _tabletop_masks(frame, self._settings.max_objects) if self._is_tabletop \
            else decode_masks_or_none(match, self._settings)
        frame = replace(frame, labels=segmentation.labels, instances=segmentation.instances)
        check_frame(frame)
        self._tracker.update(frame)
        faults = [*segmentation.warnings]
        if asked := rebuild.request(self._tracker):
            result = rebuild.run(self.pipeline, asked)
            self._tracker.absorb(asked, rebuild.prepare(asked, result.objects), result.plane)
            faults += [*(rejection.fault for rejection in result.rejections), *result.warnings]
        for fault in faults:
            self._note(fault)
        self.set_count += 1
        placed = [PlacedObject(item, np.eye(4)) for item in self._tracker.objects(frame)]
        known = self._schedule.known(placed, time_ns / 1e9)
        header = match.messages[IMAGE].header
        self._writer.write(OBJECTS_TOPIC, time_ns, object_mesh_array(placed, header, known))
        self._writer.write(POSES_TOPIC, time_ns, pose_array(placed, header))
        self.object_count += sum(p.seen for p in placed)

    def _note(self, fault: Fault) -> None:
        self._first_faults.setdefault(fault.code, fault.without_traceback())
        self._fault_counts[fault.code] += 1


def _tabletop_masks(frame: Frame, max_objects: int) -> Segmentation:
    """Masks of the `max_objects` largest things that stand apart, by depth alone.  That there are none is a result,
    too, with the warning MASK_EMPTY.

    Raises Fault DEPTH_EMPTY, SUPPORT_PLANE_NOT_FOUND, MASK_ALL_FOREGROUND.
    """
    masked = with_tabletop_masks(frame)
    if not masked.instances:
        return Segmentation(masked.labels, (), (Fault(FaultCode.MASK_EMPTY, "nothing stands apart on the table"),))
    return select(masked.labels, masked.instances, max_objects)
