"""One thread that works on the newest job."""
from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any


class Worker:
    """Runs jobs outside the callbacks: requests in their order, and of other jobs only the newest (a one-slot mailbox).

    process: called with one job at a time, in the worker's thread; must not raise
    interval: gives the least seconds between the starts of two mailbox jobs; it is read before each
    """

    def __init__(self, process: Callable[[Any], None], interval: Callable[[], float]):
        self._process = process
        self._interval = interval
        self._changed = threading.Condition()
        self._newest: Any = None
        self._requests: deque[Any] = deque()
        self._stopping = False
        self._next_start = 0.0
        self._thread = threading.Thread(target=self._run, name="sam3d_worker")
        self._thread.start()

    def put(self, job: Any) -> None:
        """Replace the job in the mailbox; None empties it."""
        with self._changed:
            self._newest = job
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
            self._newest = None
            return waiting

    def stop(self) -> None:
        """End the thread after the job at work, and wait for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (job := self._take()) is not None:
            self._process(job)

    def _take(self) -> Any:
        """The next job; None to stop."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                if self._requests:
                    return self._requests.popleft()
                if self._newest is not None and now >= self._next_start:
                    job, self._newest = self._newest, None
                    self._next_start = now + self._interval()
                    return job
                # A job that came too soon waits here, and may still be replaced by a newer one.
                self._changed.wait(self._next_start - now if self._newest is not None else None)
            return None
