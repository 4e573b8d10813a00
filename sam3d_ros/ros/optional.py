"""Packages that a full ROS 2 installation has and the wheels of PyPI lack: used where present."""
from __future__ import annotations

import importlib
from types import ModuleType


def optional(module: str) -> ModuleType | None:
    """The module, or None where its package is not installed; an error inside it is not hidden."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.split(".")[0] == error.name.split(".")[0]:
            return None
        raise
