"""Matching of colour, depth, camera_info and masks in time.

message_filters is not used, even where it is installed: its approximate policy keeps a queue of a fixed number of
messages, which a detector that lags by half a second overruns at 30 Hz; it cannot prefer the newest complete set, drop
what is older, notice that a bag started over, or say which stream is missing.

Nothing here knows rclpy: stamps are nanoseconds, arrival times are seconds of any monotonic clock.
"""
from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..perception.faults import Fault, FaultCode

IMAGE, CAMERA_INFO, DEPTH, MASKS, DETECTIONS = "image", "camera_info", "depth_image", "segmentation", "detections"
MISSING = {IMAGE: FaultCode.IMAGE_MISSING, CAMERA_INFO: FaultCode.CAMERA_INFO_MISSING, DEPTH: FaultCode.DEPTH_MISSING,
           MASKS: FaultCode.MASK_MISSING, DETECTIONS: FaultCode.MASK_MISSING}
# A stamp that is older than its predecessor by more than this is a clock that was set back, not a late message.
JUMP_BACK_NS = 1_000_000_000
# So many late messages in a row, whose own stamps rise, are one, too: a bag shorter than that started over.
_LATE_IN_A_ROW = 5
# Weight of the newest interval in a stream's rate.
_RATE_SMOOTHING = 0.1


@dataclass(frozen=True)
class Match:
    """One complete set: stream -> message, of the image with stamp `stamp_ns` that came at `arrival` (monotonic, s)."""

    stamp_ns: int
    arrival: float
    messages: dict[str, Any]


@dataclass(order=True)
class _Entry:
    stamp_ns: int
    message: Any = field(compare=False)
    size: int = field(compare=False)
    arrival: float = field(compare=False)


@dataclass
class StreamStatus:
    """What is known of one stream.

    interval: smoothed seconds between arrivals, 0 = unknown; arrival: of the last message, refused or not, s
    taken: arrival of the newest that was not refused, s; newest_ns: its stamp; offset_ns: its stamp less that of the
    image nearest to it, None = there was no image
    refused: messages in a row that were refused since then, with rising stamps; refused_ns: stamp of the last
    """

    interval: float = 0.0
    arrival: float | None = None
    taken: float | None = None
    newest_ns: int = 0
    offset_ns: int | None = None
    refused: int = 0
    refused_ns: int = 0

    def arrive(self, now: float) -> None:
        """Count a message."""
        if self.arrival is not None:
            gap = now - self.arrival
            self.interval = gap if not self.interval else self.interval + _RATE_SMOOTHING * (gap - self.interval)
        self.arrival = now

    def take(self, stamp_ns: int, now: float) -> None:
        """Note that the message was taken."""
        self.taken, self.newest_ns = now, stamp_ns
        self.refused = self.refused_ns = 0

    def see_image(self, stamp_ns: int) -> None:
        """Note an image that came after the newest message: it may be the one that this belongs to."""
        offset_ns = self.newest_ns - stamp_ns
        if self.newest_ns and (self.offset_ns is None or abs(offset_ns) < abs(self.offset_ns)):
            self.offset_ns = offset_ns

    def refuse(self, stamp_ns: int) -> None:
        """Note that the message was refused."""
        self.refused = self.refused + 1 if stamp_ns > self.refused_ns else 1
        self.refused_ns = stamp_ns

    def forget(self) -> None:
        """Forget the stamps."""
        self.newest_ns = self.refused = self.refused_ns = 0

    @property
    def rate(self) -> float:
        """Messages per second, 0 while unknown."""
        return 1 / self.interval if self.interval else 0.0


class Synchroniser:
    """Finds the newest complete set of messages whose stamps lie within a slop of the image's.

    required: streams that a set must hold, IMAGE among them; CAMERA_INFO is taken as it last came, whatever its stamp
    optional: streams that a set must hold too while messages of them come in (within the history)
    slop_ns: largest difference between the stamp of the image and that of depth, masks or detections
    history_ns: how far the stamps kept reach back: at least the detector's lag
    max_bytes: bound on the memory of the messages kept
    """

    def __init__(self, required: Sequence[str], optional: Sequence[str] = (), *, slop_ns: int, history_ns: int,
                 max_bytes: int):
        self.required = tuple(required)
        self.optional = tuple(optional)
        self.without_masks = tuple(stream for stream in required if stream not in (MASKS, DETECTIONS))
        self.slop_ns = slop_ns
        self.history_ns = history_ns
        self.max_bytes = max_bytes
        self.status = {stream: StreamStatus() for stream in (*required, *optional)}
        self.latest: Match | None = None
        self._camera_info: Any = None
        self._kept: dict[str, list[_Entry]] = {s: [] for s in self.status if s != CAMERA_INFO}
        self._bytes = 0
        self._crowded: float | None = None      # when messages were last dropped for want of memory
        self._ahead_ns = 0              # stamp of the last set that `ahead` returned
        self._passed_over = False       # whether the newest complete set came without the masks of those before it
        self._started: float | None = None
        self._matched: float | None = None

    def start(self, now: float | None = None) -> None:
        """Begin to count the time in which nothing comes."""
        self._started = self._matched = time.monotonic() if now is None else now

    def clear(self) -> None:
        """Forget all messages and stamps, but not camera_info, which some drivers publish only once."""
        for stream, entries in self._kept.items():
            entries.clear()
            self.status[stream].forget()
        self._bytes = self._ahead_ns = 0
        self._passed_over = False
        self.latest = None

    def add(self, stream: str, stamp_ns: int, message: Any, size: int = 0, now: float | None = None) -> Match | None:
        """Take a message in; the newest complete set, if there is one newer than the last that was returned.

        size: bytes; now: arrival, seconds of a monotonic clock.
        Raises Fault STAMP_MISSING and STAMP_OUT_OF_ORDER (the message is dropped) and CLOCK_JUMPED_BACK (everything
        else was forgotten).
        """
        now = time.monotonic() if now is None else now
        status = self.status[stream]
        status.arrive(now)
        if stream == CAMERA_INFO:
            self._camera_info = message
            return self._emit(now)
        behind = status.newest_ns - stamp_ns
        jumped = self._has_jumped(stream, stamp_ns)
        if jumped:
            self.clear()
        status.take(stamp_ns, now)
        insort(self._kept[stream], _Entry(stamp_ns, message, size, now))
        self._bytes += size
        image = self._nearest(IMAGE, stamp_ns)
        status.offset_ns = None if image is None else stamp_ns - image.stamp_ns
        if stream == IMAGE:
            for other in self.status.values():
                other.see_image(stamp_ns)
        self._evict(now)
        if jumped:
            raise Fault(FaultCode.CLOCK_JUMPED_BACK, f"{behind / 1e9:.1f} s on {stream}")
        return self._emit(now)

    def newest(self, streams: Sequence[str]) -> Match | None:
        """The newest set that holds `streams` (IMAGE among them), returned before or not; None if there is none yet."""
        match = self._find(streams, after_ns=0)
        if self.latest and (match is None or match.stamp_ns <= self.latest.stamp_ns):
            return self.latest
        return match

    def ahead(self) -> Match | None:
        """The newest set that lacks nothing but its masks, each once, while masks lag: those of an older one have not
        come either, or did not come before the newest complete set.  So masks that come before the next image never
        give one.

        None also before the first complete set, and without depth.
        """
        if self.latest is None or DEPTH not in self.required:
            return None
        match = self._find(self.without_masks, after_ns=max(self.latest.stamp_ns, self._ahead_ns))
        if match is None or not (self._passed_over or self._is_older_waiting(match)):
            return None
        self._ahead_ns = match.stamp_ns
        return match

    def fault(self, timeout: float, now: float | None = None) -> Fault | None:
        """Why there has been no complete set for `timeout` seconds, or None."""
        now = time.monotonic() if now is None else now
        for stream in self.required:
            arrival = self.status[stream].arrival
            if stream == CAMERA_INFO and arrival is not None:
                continue
            silent = self._since(arrival, now)
            if silent > timeout:
                return Fault(MISSING[stream], f"on {stream} for {silent:.1f} s; " + self.describe(now))
        if now - self._matched > timeout:
            return Fault(FaultCode.STAMPS_DO_NOT_MATCH, self._likely_cause(timeout, now) + "; " + self.describe(now))
        return None

    def describe(self, now: float | None = None) -> str:
        """All streams, one line: rate, age of the newest message, its stamp's offset from the nearest image."""
        now = time.monotonic() if now is None else now

        def one(stream: str, status: StreamStatus) -> str:
            if status.arrival is None:
                return f"{stream}: never"
            text = f"{stream}: {status.rate:.1f} Hz, {now - status.arrival:.1f} s ago"
            if stream in (IMAGE, CAMERA_INFO) or status.offset_ns is None:
                return text
            return f"{text}, stamp {status.offset_ns / 1e6:+.1f} ms from the image"
        return "; ".join(one(*item) for item in self.status.items())

    def _has_jumped(self, stream: str, stamp_ns: int) -> bool:
        """Whether the stream's clock was set back.  Raises Fault STAMP_MISSING and STAMP_OUT_OF_ORDER."""
        status = self.status[stream]
        behind = status.newest_ns - stamp_ns
        if stamp_ns <= 0:
            status.refuse(stamp_ns)
            raise Fault(FaultCode.STAMP_MISSING, f"on {stream}")
        if not status.newest_ns or behind < 0:
            return False
        # Within the history, only images tell that time was set back: what belongs to them may be that late.
        image_ns = self.status[IMAGE].newest_ns
        may_be_late = stream != IMAGE and image_ns and stamp_ns > image_ns - self.history_ns
        if behind > JUMP_BACK_NS and not may_be_late:
            return True
        status.refuse(stamp_ns)
        if behind and status.refused >= _LATE_IN_A_ROW:
            return True
        raise Fault(FaultCode.STAMP_OUT_OF_ORDER,
                    f"on {stream}, {behind / 1e6:.1f} ms behind" if behind else f"on {stream}, same stamp twice")

    def _since(self, arrival: float | None, now: float) -> float:
        """Seconds since an arrival, None: since the start."""
        return now - (self._started if arrival is None else arrival)

    def _likely_cause(self, timeout: float, now: float) -> str:
        for stream in self.required:
            if stream != CAMERA_INFO and self._since(self.status[stream].taken, now) > timeout:
                return f"{stream} is refused: its stamps are missing or do not rise"
        if self._crowded is not None and now - self._crowded < timeout and self._is_image_gone():
            return f"messages that wait for the others take more than history_bytes ({self.max_bytes})"
        for stream in self._kept:
            offset = self.status[stream].offset_ns
            if stream == IMAGE or offset is None or abs(offset) <= self.slop_ns:
                continue
            if abs(offset) > 1e12:
                return f"{stream} is stamped by another clock (check use_sim_time)"
            if self.status[IMAGE].newest_ns - self.status[stream].newest_ns > self.history_ns:
                return f"{stream} lags by more than history ({self.history_ns / 1e9:g} s)"
            return f"{stream} is {offset / 1e6:+.1f} ms from the nearest image, sync_slop is {self.slop_ns / 1e6:g} ms"
        return "stamps of depth and segmentation fit different images"

    def _is_image_gone(self) -> bool:
        """Whether the image that a stream's newest message belongs to would be in the history still, and is not."""
        newest = self.status[IMAGE].newest_ns
        oldest = self._kept[IMAGE][0].stamp_ns if self._kept[IMAGE] else newest + 1
        return any(newest - self.history_ns <= self.status[stream].newest_ns < oldest for stream in self._kept)

    def _emit(self, now: float) -> Match | None:
        alive = [s for s in self.optional if self.status[s].taken is not None
                 and now - self.status[s].taken < self.history_ns / 1e9]
        match = self._find((*self.required, *alive), after_ns=self.latest.stamp_ns if self.latest else 0)
        if match is None:
            return None
        self._passed_over = self.latest is not None and self._is_older_waiting(match)
        self.latest = match
        self._matched = now
        for stream in self._kept:  # what is older can be in no newer set
            self._drop(stream, bisect_left(self._kept[stream], match.stamp_ns - self.slop_ns, key=_stamp))
        return match

    def _is_older_waiting(self, match: Match) -> bool:
        """Whether an image between the newest complete set and `match` lacks nothing but its masks."""
        return self._find(self.without_masks, self.latest.stamp_ns, match.stamp_ns) is not None

    def _find(self, streams: Sequence[str], after_ns: int, before_ns: int | None = None) -> Match | None:
        """The newest set with an image younger than `after_ns`, and older than `before_ns`."""
        for image in reversed(self._kept[IMAGE]):
            if before_ns is not None and image.stamp_ns >= before_ns:
                continue
            if image.stamp_ns <= after_ns:
                return None
            messages = self._complete(image, streams)
            if messages is not None:
                return Match(image.stamp_ns, image.arrival, messages)
        return None

    def _complete(self, image: _Entry, streams: Sequence[str]) -> dict[str, Any] | None:
        messages = {}
        for stream in streams:
            if stream == CAMERA_INFO:
                found = self._camera_info
            else:
                entry = self._nearest(stream, image.stamp_ns)
                # The other way round too: a mask belongs to the image that is nearest to it, and to no other.
                mutual = entry and abs(entry.stamp_ns - image.stamp_ns) <= self.slop_ns \
                    and self._nearest(IMAGE, entry.stamp_ns) is image
                found = entry.message if mutual else None
            if found is None:
                return None
            messages[stream] = found
        return messages

    def _nearest(self, stream: str, stamp_ns: int) -> _Entry | None:
        entries = self._kept[stream]
        at = bisect_left(entries, stamp_ns, key=_stamp)
        return min(entries[max(0, at - 1):at + 1], key=lambda e: abs(e.stamp_ns - stamp_ns), default=None)

    def _evict(self, now: float) -> None:
        for stream in self._kept:  # each by its own newest stamp: another's clock may be wrong
            oldest_ns = self.status[stream].newest_ns - self.history_ns
            self._drop(stream, bisect_left(self._kept[stream], oldest_ns, key=_stamp))
        while self._bytes > self.max_bytes:
            oldest = min((s for s in self._kept if self._kept[s]), key=lambda s: self._kept[s][0].stamp_ns)
            self._drop(oldest, 1)
            self._crowded = now

    def _drop(self, stream: str, count: int) -> None:
        self._bytes -= sum(entry.size for entry in self._kept[stream][:count])
        del self._kept[stream][:count]


def _stamp(entry: _Entry) -> int:
    return entry.stamp_ns
