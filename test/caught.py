"""What a call is refused with."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sam3d_ros.perception.faults import Fault, FaultCode


def fault_of(function: Callable[..., Any], *arguments: Any) -> FaultCode:
    """The fault that a call raises."""
    with pytest.raises(Fault) as caught:
        function(*arguments)
    return caught.value.code
