"""Reading and writing rosbag2 recordings (sqlite3 and MCAP) with the `rosbags` library, rosbag2 itself not needed.

`rosbags` handles the files; messages are ROS messages, from and to CDR by rclpy, so that what works on a topic works
on a bag.
"""
from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from ament_index_python.packages import get_package_share_directory
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from ..perception.faults import Fault, FaultCode
from ..runtime.engine import last_line

STORAGES = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}
BAG_SUFFIXES = (".db3", ".mcap")
PACKAGE = "sam3d_ros"
_BAG_VERSION = 9          # of the metadata; what Jazzy writes


class BagMessage(NamedTuple):
    """topic: its name; time_ns: when it was recorded; data: CDR."""

    topic: str
    time_ns: int
    data: bytes


class BagReader:
    """A recording: a folder with metadata.yaml, or a single .db3 or .mcap file.  A context manager.

    topics: name -> type, such as sensor_msgs/msg/Image; counts: name -> number of messages; storage: key of STORAGES

    Raises Fault(BAG_UNREADABLE), here and while reading.
    """

    def __init__(self, path: Path):
        self.path = path
        if files := _files_without_metadata(path):
            raise Fault(FaultCode.BAG_UNREADABLE, f"{path} has no metadata.yaml, as after a recording that was cut "
                                                  f"off: give {' or '.join(map(str, files))}")
        self._reader = self._guard(Reader, path)
        self._guard(self._reader.open)
        self._connections = {connection.topic: connection for connection in self._reader.connections}
        self.topics = {topic: connection.msgtype for topic, connection in self._connections.items()}
        self.counts = {topic: connection.msgcount for topic, connection in self._connections.items()}
        files = path.iterdir() if path.is_dir() else [path]
        self.storage = "mcap" if any(".mcap" in file.suffixes for file in files) else "sqlite3"

    def messages(self, topics: Mapping[str, Any] | list[str]) -> Iterator[BagMessage]:
        """The messages of `topics`, in the order in which they were recorded."""
        iterator = self._reader.messages([self._connections[topic] for topic in topics])
        while (item := self._guard(next, iterator, None)) is not None:
            connection, time_ns, data = item
            yield BagMessage(connection.topic, time_ns, bytes(data))

    def decode(self, message: BagMessage, message_type: type) -> Any:
        """The ROS message."""
        return self._guard(deserialize_message, message.data, message_type)

    def connection(self, topic: str) -> Connection:
        """What `rosbags` knows of a topic, to copy it."""
        return self._connections[topic]

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.close()

    def _guard(self, call: Any, *arguments: Any) -> Any:
        """Call into the file parsers, in which a damaged file can raise nearly anything."""
        try:
            return call(*arguments)
        except Exception as error:
            raise Fault(FaultCode.BAG_UNREADABLE, f"{self.path}: {last_line(error)}") from error


class BagWriter:
    """A new recording, a folder.  A context manager: the folder appears when everything is written, or not at all.

    Raises FileExistsError: nothing is overwritten.
    """

    def __init__(self, path: Path, storage: str):
        if path.exists():
            raise FileExistsError(f"{path} exists already: remove it, or choose another output")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        self._writer = Writer(self._draft / path.name, version=_BAG_VERSION, storage_plugin=STORAGES[storage])
        self._writer.open()
        self._types = _message_types()
        self._connections: dict[str, Connection] = {}

    def add_topic(self, topic: str, message_type: str) -> None:
        """Declare a topic of a type such as sam3d_ros/msg/ObjectMeshArray."""
        self._connections[topic] = self._writer.add_connection(topic, message_type, typestore=self._types)

    def add_copied_topic(self, source: Connection) -> None:
        """Declare a topic as it is in another recording, for messages that are copied.

        Raises Fault(BAG_UNREADABLE) if that recording does not hold the type's definition and it is not a common one.
        """
        if source.msgdef.format == MessageDefinitionFormat.NONE or not source.digest:
            if source.msgtype not in self._types.fielddefs:
                raise Fault(FaultCode.BAG_UNREADABLE, f"it lacks the definition of {source.msgtype}")
            definition = {"typestore": self._types}
        else:
            definition = {"msgdef": source.msgdef.data, "rihs01": source.digest}
        self._connections[source.topic] = self._writer.add_connection(
            source.topic, source.msgtype, offered_qos_profiles=source.ext.offered_qos_profiles, **definition)

    def write(self, topic: str, time_ns: int, message: Any) -> None:
        """Append a ROS message."""
        self.copy(BagMessage(topic, time_ns, serialize_message(message)))

    def copy(self, message: BagMessage) -> None:
        """Append a message as it was recorded."""
        self._writer.write(self._connections[message.topic], message.time_ns, message.data)

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, trace)
        if kind is None:
            os.rename(self._draft / self.path.name, self.path)
        shutil.rmtree(self._draft)


def _files_without_metadata(path: Path) -> list[Path]:
    """The files of a recording that lacks its metadata; none if it has it, or is no folder."""
    if not path.is_dir() or (path / "metadata.yaml").exists():
        return []
    return sorted(file for file in path.iterdir() if file.suffix in BAG_SUFFIXES)


def _message_types() -> Typestore:
    """The types of ROS 2 Jazzy and of this package, for `rosbags`."""
    store = get_typestore(Stores.ROS2_JAZZY)
    types = {}
    for file in sorted(_message_folder().glob("*.msg")):
        types |= get_types_from_msg(file.read_text(encoding="utf-8"), f"{PACKAGE}/msg/{file.stem}")
    store.register(types)
    return store


def _message_folder() -> Path:
    """Folder of this package's .msg files: of the source tree, else where it is installed."""
    source = Path(__file__).parents[2] / "msg"
    return source if source.is_dir() else Path(get_package_share_directory(PACKAGE)) / "msg"
