"""Shared fixtures."""
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Tests must not hear, nor be heard by, robots on the network.
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")


@pytest.fixture(scope="session")
def ros() -> Iterator[None]:
    """rclpy, initialised once for the whole run."""
    import rclpy
    rclpy.init()
    yield
    rclpy.try_shutdown()
