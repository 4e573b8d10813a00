"""One thread that works on the newest job of each source."""
from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.logging import get_logger

# Seconds after which a job that waits looks at the interval again.
_LOOK_AGAIN = 0.1


class Worker:
    """Runs jobs outside the callbacks: requests in their order, and of other jobs only the newest of each source (a
    mailbox with one slot per source; the source that waits longest comes first).

    process: called with one job at a time, in the worker's thread; what it raises is logged, and the next job done
    interval: gives the least seconds between the starts of two mailbox jobs; a change holds for one that waits, too
    """

    def __init__(self, process: Callable[[Any], None], interval: Callable[[], float]):
        self._process = process
        self._interval = interval
        self._changed = threading.Condition()
        self._newest: dict[str, Any] = {}
        self._requests: deque[Any] = deque()
        self._stopping = False
        self._last_start = -math.inf
        self._thread = threading.Thread(target=self._run, name="sam3d_worker")
        self._thread.start()

    def put(self, job: Any, source: str = "") -> None:
        """Replace the job of a source; None takes the jobs of all sources out."""
        with self._changed:
            if job is None:
                self._newest.clear()
            else:
                self._newest[source] = job
            self._changed.notify()

    def request(self, job: Any) -> None:
        """Add a job that must not be dropped; it goes before the mailbox's."""
        with self._changed:
            self._requests.append(job)
            self._changed.notify()

    def clear(self) -> list[Any]:
        """Empty mailbox and queue; the requests that were waiting.  The job at work goes on."""
        with self._changed:
            waiting = [*self._requests]
            self._requests.clear()
            self._newest.clear()
            return waiting

    def stop(self) -> None:
        """End the thread after the job at work, and wait for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            try:
                if (job := self._take()) is not None:
                    self._process(job)
            except Exception:
                get_logger("sam3d_worker").error(traceback.format_exc())

    def _take(self) -> Any:
        """The next job; None to stop."""
        with self._changed:
            while not self._stopping:
                if self._requests:
                    return self._requests.popleft()
                if not self._newest:
                    self._changed.wait()
                    continue
                now = time.monotonic()
                since, interval = now - self._last_start, self._interval()
                if since >= interval:
                    self._last_start = now
                    return self._newest.pop(next(iter(self._newest)))
                # A job that came too soon waits here, and may still be replaced by a newer one.
                self._changed.wait(min(interval - since, _LOOK_AGAIN))
            return None
