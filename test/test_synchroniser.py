"""Matching in time, with numbers."""
from __future__ import annotations

import pytest

from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.ros.synchroniser import CAMERA_INFO, DEPTH, DETECTIONS, IMAGE, JUMP_BACK_NS, MASKS, Synchroniser

MS = 1_000_000
START = 1000 * 1000 * MS


def make(required=(IMAGE, CAMERA_INFO, DEPTH, MASKS), optional=(), slop=15, history=2000,
         max_bytes=10**9) -> Synchroniser:
    """Synchroniser that knows the camera already; slop and history in milliseconds."""
    synchroniser = Synchroniser(required, optional, slop_ns=slop * MS, history_ns=history * MS, max_bytes=max_bytes)
    synchroniser.start(now=0.0)
    if CAMERA_INFO in required:
        synchroniser.add(CAMERA_INFO, 0, "info", now=0.0)
    return synchroniser


def at(milliseconds: float) -> int:
    return START + round(milliseconds * MS)


def feed(synchroniser: Synchroniser, *messages: tuple[str, float], now: float = 0.0) -> list[int]:
    """Add messages (stream, milliseconds); the stamps of the matches, in milliseconds."""
    matches = [synchroniser.add(stream, at(ms), f"{stream} {ms:g}", now=now) for stream, ms in messages]
    return [round((match.stamp_ns - START) / MS) for match in matches if match]


def test_a_set_is_complete_in_any_order():
    messages = [(IMAGE, 0), (DEPTH, 1), (MASKS, 0)]
    for order in (messages, messages[::-1], [messages[1], messages[2], messages[0]]):
        synchroniser = make()
        assert feed(synchroniser, *order) == [0]
        assert synchroniser.latest.messages == {IMAGE: "image 0", CAMERA_INFO: "info", DEPTH: "depth_image 1",
                                                MASKS: "segmentation 0"}


def test_masks_of_a_lagging_detector_find_their_image():
    synchroniser = make()
    for ms in range(0, 500, 33):
        assert feed(synchroniser, (IMAGE, ms), (DEPTH, ms)) == []
    assert feed(synchroniser, (MASKS, 66)) == [66]
    assert synchroniser.latest.messages[IMAGE] == "image 66"
    assert feed(synchroniser, (MASKS, 330)) == [330]


def test_the_newest_set_wins_and_older_ones_are_dropped():
    synchroniser = make()
    feed(synchroniser, (IMAGE, 0), (DEPTH, 0), (IMAGE, 33), (DEPTH, 33))
    assert feed(synchroniser, (MASKS, 33)) == [33]
    synchroniser = make()
    feed(synchroniser, (IMAGE, 0), (MASKS, 0), (IMAGE, 33), (MASKS, 33))
    assert feed(synchroniser, (DEPTH, 33)) == [33]
    assert feed(synchroniser, (IMAGE, 66)) == []


def test_slop():
    assert feed(make(slop=15), (IMAGE, 0), (MASKS, 0), (DEPTH, 15)) == [0]
    assert feed(make(slop=15), (IMAGE, 0), (MASKS, 0), (DEPTH, 15.1)) == []


def test_masks_belong_to_the_nearest_image_only():
    synchroniser = make(required=(IMAGE, MASKS), slop=30)
    feed(synchroniser, (IMAGE, 0), (IMAGE, 33))
    assert feed(synchroniser, (MASKS, 20)) == [33]


def test_an_image_within_the_slop_of_a_match_still_gets_its_own():
    synchroniser = make(required=(IMAGE, MASKS), slop=15)
    assert feed(synchroniser, (IMAGE, 0), (IMAGE, 10), (MASKS, 0)) == [0]
    assert feed(synchroniser, (MASKS, 10)) == [10]


def test_camera_info_may_come_last_and_survives_a_reset():
    synchroniser = Synchroniser((IMAGE, CAMERA_INFO), slop_ns=0, history_ns=10**9, max_bytes=10**9)
    synchroniser.start(now=0.0)
    assert feed(synchroniser, (IMAGE, 0)) == []
    assert feed(synchroniser, (CAMERA_INFO, 0)) == [0]
    synchroniser.clear()
    assert feed(synchroniser, (IMAGE, 0)) == [0]


def test_detections_are_waited_for_while_they_come():
    synchroniser = make(optional=(DETECTIONS,))
    assert feed(synchroniser, (IMAGE, 0), (DEPTH, 0), (MASKS, 0), now=0.0) == [0]
    assert feed(synchroniser, (DETECTIONS, 33), (IMAGE, 33), (DEPTH, 33), (MASKS, 33), now=0.1) == [33]
    assert feed(synchroniser, (IMAGE, 66), (DEPTH, 66), (MASKS, 66), now=0.2) == []
    assert feed(synchroniser, (DETECTIONS, 66), now=0.2) == [66]
    assert DETECTIONS in synchroniser.latest.messages
    assert feed(synchroniser, (IMAGE, 99), (DEPTH, 99), (MASKS, 99), now=9.0) == [99]


def test_history_is_bounded_in_time_and_memory():
    synchroniser = make(required=(IMAGE, MASKS), slop=4, history=100)
    feed(synchroniser, *((IMAGE, ms) for ms in range(0, 1000, 10)))
    assert feed(synchroniser, (MASKS, 880)) == []
    assert feed(synchroniser, (MASKS, 900)) == [900]
    synchroniser = make(required=(IMAGE, MASKS), slop=4, max_bytes=1000)
    for ms in range(0, 1000, 10):
        synchroniser.add(IMAGE, at(ms), "image", size=100)
    assert synchroniser._bytes == 1000
    assert feed(synchroniser, (MASKS, 890)) == []
    assert feed(synchroniser, (MASKS, 900)) == [900]


def fault_of(synchroniser: Synchroniser, stream: str, stamp_ns: int) -> FaultCode:
    with pytest.raises(Fault) as caught:
        synchroniser.add(stream, stamp_ns, "message", now=0.0)
    return caught.value.code


def test_stamp_faults():
    synchroniser = make()
    assert fault_of(synchroniser, IMAGE, 0) == FaultCode.STAMP_MISSING
    feed(synchroniser, (IMAGE, 100))
    assert fault_of(synchroniser, IMAGE, at(100)) == FaultCode.STAMP_OUT_OF_ORDER
    assert fault_of(synchroniser, IMAGE, at(100) - JUMP_BACK_NS) == FaultCode.STAMP_OUT_OF_ORDER
    assert feed(synchroniser, (DEPTH, 100), (MASKS, 100)) == [100]


def test_a_jump_back_clears_and_goes_on():
    synchroniser = make()
    feed(synchroniser, (IMAGE, 5000), (DEPTH, 5000))
    assert fault_of(synchroniser, IMAGE, at(0)) == FaultCode.CLOCK_JUMPED_BACK
    assert feed(synchroniser, (MASKS, 5000)) == []
    synchroniser = make()
    assert feed(synchroniser, (IMAGE, 5000), (DEPTH, 5000), (MASKS, 5000)) == [5000]
    assert fault_of(synchroniser, IMAGE, at(0)) == FaultCode.CLOCK_JUMPED_BACK
    assert feed(synchroniser, (DEPTH, 0), (MASKS, 0)) == [0]


def outcomes(synchroniser: Synchroniser, *messages: tuple[str, float]) -> list[str]:
    """What becomes of each message: the name of its fault, "match" or ""."""
    def outcome(stream: str, ms: float) -> str:
        try:
            return "match" if synchroniser.add(stream, at(ms), f"{stream} {ms:g}", now=0.0) else ""
        except Fault as fault:
            return fault.code.name
    return [outcome(*message) for message in messages]


def test_a_bag_shorter_than_a_jump_may_loop():
    synchroniser = make(required=(IMAGE, DEPTH))
    loop = [(stream, ms) for ms in range(0, 800, 40) for stream in (IMAGE, DEPTH)]
    assert outcomes(synchroniser, *loop).count("match") == 20
    for _ in range(3):
        again = outcomes(synchroniser, *loop)
        assert again[:8] == ["STAMP_OUT_OF_ORDER"] * 8
        assert again[8] == "CLOCK_JUMPED_BACK"
        assert again[9:] == ["match", *["", "match"] * 15]
    assert synchroniser.latest.messages == {IMAGE: "image 760", DEPTH: "depth_image 760"}


@pytest.mark.parametrize("late", [
    [1, 1, 1, 1, 1, 1, 1],              # one message again and again
    [7, 6, 5, 4, 3, 2, 1],              # falling
    [500, 500, 500, 500, 500, 500],     # the newest again and again
    [1, 2, 3, 4, 510, 5, 6, 7, 8],      # never five in a row
], ids=["same", "falling", "newest", "interrupted"])
def test_late_messages_are_no_jump(late: list[float]):
    synchroniser = make()
    feed(synchroniser, (IMAGE, 500))
    assert set(outcomes(synchroniser, *((IMAGE, ms) for ms in late))) <= {"STAMP_OUT_OF_ORDER", ""}
    assert feed(synchroniser, (DEPTH, 500), (MASKS, 500)) == [500]


def test_masks_later_than_a_newer_one_are_no_jump():
    """Two workers of a detector: the first image takes one of them long."""
    synchroniser = make(history=10_000)
    for ms in range(0, 3000, 500):
        feed(synchroniser, (IMAGE, ms), (DEPTH, ms))
    assert feed(synchroniser, (MASKS, 2000)) == [2000]
    assert outcomes(synchroniser, (MASKS, 0)) == ["STAMP_OUT_OF_ORDER"]
    assert feed(synchroniser, (MASKS, 2500)) == [2500]
    assert outcomes(synchroniser, (IMAGE, 0)) == ["CLOCK_JUMPED_BACK"]


def test_refused_messages_are_not_missing():
    synchroniser = make()
    feed(synchroniser, (IMAGE, 0), (DEPTH, 0), (MASKS, 0))
    for step in range(1, 61):
        with pytest.raises(Fault):
            synchroniser.add(IMAGE, at(0), "image", now=step / 10)
        feed(synchroniser, (DEPTH, 100 * step), (MASKS, 100 * step), now=step / 10)
    fault = synchroniser.fault(5.0, now=6.0)
    assert fault.code == FaultCode.STAMPS_DO_NOT_MATCH
    assert "image is refused: its stamps are missing or do not rise" in fault.detail
    assert "image: 10.0 Hz, 0.0 s ago" in fault.detail


def test_refused_detections_are_not_waited_for():
    synchroniser = make(required=(IMAGE, MASKS), optional=(DETECTIONS,))
    for step in range(3):
        assert fault_of(synchroniser, DETECTIONS, 0) == FaultCode.STAMP_MISSING
        assert feed(synchroniser, (IMAGE, 33 * step), (MASKS, 33 * step)) == [33 * step]


def test_newest_serves_requests():
    synchroniser = make()
    without_masks = (IMAGE, CAMERA_INFO, DEPTH)
    assert synchroniser.newest(without_masks) is None
    feed(synchroniser, (IMAGE, 0), (DEPTH, 0), (MASKS, 0), (IMAGE, 33), (DEPTH, 33))
    assert synchroniser.newest(synchroniser.required).stamp_ns == at(0)
    assert synchroniser.newest(without_masks).stamp_ns == at(33)


def test_the_newest_set_serves_requests_after_its_messages_have_left_the_history():
    synchroniser = make(history=100)
    feed(synchroniser, (IMAGE, 0), (DEPTH, 0), (MASKS, 0), (IMAGE, 500), (DEPTH, 500))
    assert synchroniser.newest(synchroniser.required).stamp_ns == at(0)


@pytest.mark.parametrize(("missing", "code"), [
    (IMAGE, FaultCode.IMAGE_MISSING), (DEPTH, FaultCode.DEPTH_MISSING), (MASKS, FaultCode.MASK_MISSING)])
def test_fault_names_the_silent_stream(missing: str, code: FaultCode):
    synchroniser = make()
    for step in range(60):
        feed(synchroniser, *((stream, 100 * step) for stream in (IMAGE, DEPTH, MASKS) if stream != missing),
             now=step / 10)
    assert synchroniser.fault(10.0, now=6.0) is None
    fault = synchroniser.fault(5.0, now=6.0)
    assert fault.code == code
    assert f"on {missing} for 6.0 s" in fault.detail
    assert f"{missing}: never" in fault.detail
    assert "10.0 Hz" in fault.detail


def test_fault_says_when_a_stream_stopped():
    synchroniser = make()
    feed(synchroniser, (IMAGE, 0), (DEPTH, 0), (MASKS, 0), now=1.0)
    assert synchroniser.fault(5.0, now=6.0) is None
    assert synchroniser.fault(5.0, now=6.1).code == FaultCode.IMAGE_MISSING


@pytest.mark.parametrize("first", [IMAGE, DEPTH])
@pytest.mark.parametrize(("lag_ms", "history", "cause"), [
    (16, 2000, "segmentation is -16.0 ms from the nearest image, sync_slop is 15 ms"),
    (5000, 2000, "segmentation lags by more than history (2 s)"),
    (900_000, 2000, "lags by more than history"),
    (-2_000_000, 2000, "segmentation is stamped by another clock"),
])
def test_fault_says_why_stamps_do_not_match(lag_ms: float, history: int, cause: str, first: str):
    synchroniser = make(history=history)
    for step in range(60):
        at_once = sorted([(IMAGE, 100 * step), (DEPTH, 100 * step)], key=lambda message: message[0] != first)
        feed(synchroniser, *at_once, (MASKS, 100 * step - lag_ms), now=step / 10)
    fault = synchroniser.fault(5.0, now=6.0)
    assert fault.code == FaultCode.STAMPS_DO_NOT_MATCH
    assert cause in fault.detail
    assert f"{DEPTH}: 10.0 Hz, 0.1 s ago, stamp +0.0 ms from the image" in fault.detail


@pytest.mark.parametrize(("lag_ms", "size", "is_crowded"), [
    (1500, 3, True), (0, 30, True), (0, 60, True), (5000, 3, False), (-2_000_000, 3, False)],
    ids=["lag", "one fits", "none fits", "lags by more than history", "another clock"])
def test_fault_says_that_memory_does_not_suffice(lag_ms: float, size: int, is_crowded: bool):
    synchroniser = make(max_bytes=50)
    for step in range(60):
        for stream, ms in ((IMAGE, 0), (DEPTH, 0), (MASKS, lag_ms)):
            synchroniser.add(stream, at(100 * step - ms), stream, 1 if stream == MASKS else size, now=step / 10)
    fault = synchroniser.fault(5.0, now=6.0)
    assert fault.code == FaultCode.STAMPS_DO_NOT_MATCH
    assert ("take more than history_bytes (50)" in fault.detail) == is_crowded


def ahead(synchroniser: Synchroniser, *messages: tuple[str, float]) -> list[int]:
    """Add messages as `feed` does; the stamps, in milliseconds, of the sets ahead of their masks that came of them."""
    found = []
    for message in messages:
        if not feed(synchroniser, message) and (match := synchroniser.ahead()):
            assert match.messages.keys() == {IMAGE, CAMERA_INFO, DEPTH}
            found.append(round((match.stamp_ns - START) / MS))
    return found


def moments(start: int, end: int, lag: int = 0, every: int = 1) -> list[tuple[str, float]]:
    """Messages of images `start` to `end`, 33 ms apart; masks of every so manyth come `lag` images late."""
    return [message for step in range(start, end) for message in (
        (IMAGE, 33 * step), (DEPTH, 33 * step),
        *([(MASKS, 33 * (step - lag))] if step >= lag and (step - lag) % every == 0 else []))]


def test_nothing_is_ahead_where_masks_keep_up():
    assert ahead(make(), *moments(0, 30)) == []
    # Nor where they come before the depth, and before the first complete set.
    assert ahead(make(), *((stream, 33 * step) for step in range(9) for stream in (IMAGE, MASKS, DEPTH))) == []
    assert ahead(make(), *moments(0, 30, lag=30)) == []


def test_images_are_ahead_of_masks_that_lag():
    synchroniser = make()
    assert ahead(synchroniser, *moments(0, 12, lag=3)) == [33 * step for step in range(3, 12)]
    assert ahead(synchroniser, (MASKS, 33 * 9), (MASKS, 33 * 10), (MASKS, 33 * 11), *moments(12, 20)) == []


def test_images_are_ahead_of_a_detector_that_leaves_some_out():
    """Each but those with masks is handed over as soon as it is known that masks are left out."""
    found = ahead(make(), *moments(0, 20, every=5))
    assert found == [33 * step for step in range(2, 20)]


def test_images_are_ahead_of_masks_that_have_stopped():
    synchroniser = make()
    assert ahead(synchroniser, *moments(0, 5)) == []
    assert ahead(synchroniser, *moments(5, 90, lag=100)) == [33 * step for step in range(6, 90)]


def test_nothing_is_ahead_without_depth_nor_of_another_time():
    streams = (IMAGE, CAMERA_INFO, MASKS)
    assert ahead(make(streams), *(message for message in moments(0, 12, lag=3) if message[0] != DEPTH)) == []
    synchroniser = make()
    ahead(synchroniser, *moments(0, 12, lag=3))
    synchroniser.clear()
    assert ahead(synchroniser, *moments(0, 3)) == []
