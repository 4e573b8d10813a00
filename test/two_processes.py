"""Trains a tiny student for some seconds in two processes, of which the clock of the second is slow; each prints a
line of JSON: what its first batch was, its time, share of the time and weights.

    python test/two_processes.py RUN_FOLDER        with train_meshes and dev_meshes in it
"""
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from sam3d_ros.training import train

if __name__ == "__main__":
    seen = []

    class Learner(train._Learner):
        """Notes what it is given."""

        def __init__(self, *args):
            super().__init__(*args)
            slow = 0.8 if self._fabric.global_rank else 1.0
            train.time = SimpleNamespace(monotonic=lambda: slow * time.monotonic())

        def learn(self, batch, share):
            """See _Learner.learn."""
            seen.append((float(batch["crops"].double().sum()), share))
            super().learn(batch, share)

        def figures(self, elapsed, check):
            """See _Learner.figures."""
            weights = float(self._network.head.weight.double().sum())
            # One write, so that the two lines do not mix.
            sys.stdout.write(json.dumps({"first": seen[0][0], "share": seen[-1][1], "elapsed": elapsed,
                                         "weights": weights}) + "\n")
            sys.stdout.flush()
            return super().figures(elapsed, check)

    _SECONDS = 3.0
    train._Learner, train._CHECKED = Learner, 2
    train.shutil.which = lambda name: None              # nothing is compiled
    small = replace(train.read_config("small"), width=8, batch=2, reuse=1)
    train.train({"small": small}, Path(sys.argv[1]), Path(sys.argv[1]), _SECONDS / 60, workers=0, devices=2)
