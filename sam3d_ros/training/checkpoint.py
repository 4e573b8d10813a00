"""Checkpoints of a training run, written whole or not at all and read without pickle; and its log."""
from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..terminal import UserError

_FIELDS = {"model", "average", "config", "optimisers", "step", "elapsed"}


def save(states: Mapping[Path, dict[str, Any]]) -> None:
    """Write checkpoints, of the fields of _FIELDS, that belong together: those before stay until all are complete.

    Raises OSError.
    """
    partials = {path: path.with_suffix(".partial") for path in states}
    try:
        for path, partial in partials.items():
            _write(partial, states[path])
    except OSError:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise
    for path, partial in partials.items():
        partial.replace(path)


def _write(path: Path, state: dict[str, Any]) -> None:
    content = io.BytesIO()
    torch.save(state, content)              # of a full disk torch itself would say "unexpected pos"
    with path.open("wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())             # else a power cut may leave the name without the content


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote.  Raises OSError, and UserError if the file is no checkpoint."""
    try:
        with path.open("rb") as file:
            state = torch.load(file, weights_only=True, map_location="cpu")
        lacking = _FIELDS - state.keys()
    except OSError:
        raise
    except Exception as error:          # a file that is no checkpoint fails in as many ways as there are
        raise UserError(f"{path} is no checkpoint of `sam3d train` ({type(error).__name__})") from None
    if lacking:
        raise UserError(f"{path} is no checkpoint of `sam3d train` (it lacks {', '.join(sorted(lacking))})")
    return state


def whole_lines(log: Path) -> str:
    """The text of a run's log, without what a full disk left of the last line.  Raises OSError."""
    text = log.read_text()
    return text[:text.rfind("\n") + 1]
