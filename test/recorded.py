"""Stand-in for what a launch file is made of."""
from __future__ import annotations

from typing import Any


class Recorded:
    """Any action or substitution: keeps what it was made of."""

    def __init__(self, *arguments: Any, **keywords: Any):
        self.arguments, self.keywords = arguments, keywords
