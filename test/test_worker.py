"""The thread that works on the newest job: when it starts one, and that nothing ends it."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy")

from sam3d_ros.ros.worker import Worker  # noqa: E402

pytestmark = pytest.mark.timeout(30)


class Bench:
    """A worker that notes its jobs; interval: seconds, can be changed at any time."""

    def __init__(self) -> None:
        self.interval = 0.0
        self.done: list[Any] = []
        self.process: Callable[[Any], None] = lambda job: None
        self.worker = Worker(self._work, lambda: self.interval)

    def _work(self, job: Any) -> None:
        self.done.append(job)
        self.process(job)

    def wait(self, done: list[Any], timeout: float = 2.0) -> float:
        """Seconds until exactly these jobs are done; fails after `timeout` seconds."""
        started = time.monotonic()
        while self.done != done:
            assert time.monotonic() - started < timeout, self.done
            time.sleep(0.005)
        return time.monotonic() - started


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.worker.stop()


def test_the_first_job_starts_at_once_and_the_next_after_the_interval(bench: Bench):
    bench.interval = 0.4
    bench.worker.put(1)
    assert bench.wait([1]) < 0.2
    bench.worker.put(2)
    bench.worker.put(3)     # replaces 2
    assert 0.25 < bench.wait([1, 3]) < 0.8


def test_a_request_does_not_wait(bench: Bench):
    bench.interval = 100.0
    bench.worker.put(1)
    bench.wait([1])
    bench.worker.put(2)
    bench.worker.request(3)
    assert bench.wait([1, 3]) < 0.3


@pytest.mark.parametrize("before", [100.0, 1e11, float("inf")])
def test_a_shorter_interval_holds_for_the_job_that_waits(bench: Bench, before: float):
    bench.interval = before
    bench.worker.put(1)
    bench.wait([1])
    bench.worker.put(2)
    time.sleep(0.3)
    assert bench.done == [1]
    bench.interval = 0.1
    assert bench.wait([1, 2]) < 0.5


def test_a_job_that_raises_is_reported_and_the_next_is_done(bench: Bench, capfd: pytest.CaptureFixture[str]):
    bench.process = lambda job: 1 / job
    bench.worker.put(0)
    bench.wait([0])
    bench.worker.put(1)
    bench.wait([0, 1])
    bench.worker.request(0)
    bench.worker.request(2)
    bench.wait([0, 1, 0, 2])
    assert capfd.readouterr().err.count("ZeroDivisionError") == 2


def test_a_failing_interval_does_not_end_the_thread():
    failing = [ZeroDivisionError("once")]

    def interval() -> float:
        if failing:
            raise failing.pop()
        return 0.0
    done: list[Any] = []
    worker = Worker(done.append, interval)
    worker.put(1)
    deadline = time.monotonic() + 2
    while done != [1] and time.monotonic() < deadline:
        time.sleep(0.005)
    worker.stop()
    assert done == [1]
