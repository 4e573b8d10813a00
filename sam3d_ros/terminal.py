"""Shared by the command lines: text that is safe to print, options with a range, and errors that the user can fix."""
from __future__ import annotations

import argparse
import math
from collections.abc import Callable


class UserError(Exception):
    """What the user of a command can mend; the message is one line that says how."""


def printable(text: str) -> str:
    """One line without control characters, which could move the cursor or hide text: names come from other people's
    files.
    """
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in text)


def in_range(kind: type[int] | type[float], low: float, high: float = math.inf) -> Callable[[str], float]:
    """Type of an argparse option that is a number from `low` to `high`, both included."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            allowed = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            whole = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {whole} {allowed}")
        return value

    return read
