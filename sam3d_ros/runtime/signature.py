"""Names and shapes of the network's inputs and outputs: what a model file must have, and what every engine takes.

Everything is normalised to the object's cube: lengths are in edges of the cube (so its corners lie at -0.5 and 0.5) and
directions are along its axes, which are those of the first view's crop camera (x right, y down, z away).

crops      (B, V, 6, 96, 96)   per view: depth along the optical axis, relative to the cube's centre, in edges (0 where
                               there is none); depth-valid flag; own-mask flag; R, G, B in 0 to 1
views      (B, V, 11)          per view: rotation crop_camera_from_cube, row by row (9); distance from the camera to
                               the cube's centre, in edges; weight (1, or 0 for a view that only fills the batch)
support    (B, 5)              normal of the support plane (3, all 0 if up is unknown), its offset (normal . p + offset
                               is the height over the plane, in edges; 0 if unknown), 1 if the plane is known
distance   (B, 1, 64, 64, 64)  signed distance to the surface in voxels, negative inside
log_std    (B, 1, 32, 32, 32)  natural logarithm of the 1-sigma error of `distance`, in voxels
colour     (B, 3, 32, 32, 32)  R, G, B in 0 to 1
layout     (B, 10)             up (3) and longer horizontal axis (3) of the object, unit vectors; centre of the object
                               in the cube (3), in edges; natural logarithm of the cube's edge in metres, a guess
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CROP = 96                # pixels along the side of a view's crop
CROP_SPAN = 1.25         # edge of what a crop shows at the depth of the cube's centre, in edges of the cube
CROP_CHANNELS = 6        # depth, depth-valid flag, own-mask flag, red, green, blue
VIEW_NUMBERS = 11        # rotation (9), distance (1), weight (1)
SUPPORT_NUMBERS = 5      # normal (3), offset (1), known (1)
VOLUME = 64              # voxels along the cube's edge: signed distance
COARSE = 32              # voxels along the cube's edge: its error, colour
LAYOUT_NUMBERS = 10      # up (3), long axis (3), centre correction (3), logarithm of the edge (1)

Shape = tuple[int | None, ...]  # None: an axis of any length


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs by name, all float32.  An axis is a number, or the name of one that may have any length."""

    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]

    def difference(self, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> str:
        """What is wrong with a network's inputs and outputs, one line; empty if nothing is.

        The length of an output's axis may be unknown (None): not every library works it out before it runs.
        """
        found = [f"{kind} {names(there)} instead of {names(wanted)}"
                 for kind, wanted, there in (("inputs", self.inputs, inputs), ("outputs", self.outputs, outputs))
                 if set(wanted) != set(there)]
        if found:
            return "; ".join(found)
        found = [f"{name} is {shape_text(inputs[name])} instead of {shape_text(wanted)}"
                 for name, wanted in self.inputs.items() if not _fits(inputs[name], wanted, may_be_unknown=False)]
        found += [f"{name} is {shape_text(outputs[name])} instead of {shape_text(wanted)}"
                  for name, wanted in self.outputs.items() if not _fits(outputs[name], wanted, may_be_unknown=True)]
        return "; ".join(found)

    def input_shapes(self, **lengths: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs when the named axes have these lengths, as `input_shapes(batch=2, views=1)`."""
        return {name: _resolved(shape, lengths) for name, shape in self.inputs.items()}

    def output_shapes(self, **lengths: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs when the named axes have these lengths."""
        return {name: _resolved(shape, lengths) for name, shape in self.outputs.items()}


def _resolved(shape: tuple[int | str, ...], lengths: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else lengths[axis] for axis in shape)


def _fits(found: Shape, wanted: tuple[int | str, ...], may_be_unknown: bool) -> bool:
    return len(found) == len(wanted) and all(
        axis is None if isinstance(want, str) else axis == want or (axis is None and may_be_unknown)
        for axis, want in zip(found, wanted, strict=True))


def names(tensors: Mapping[str, object]) -> str:
    """Names of tensors, for a message."""
    return ", ".join(sorted(tensors)) or "none"


def shape_text(shape: tuple[int | str | None, ...]) -> str:
    """A shape for a message, as "? x 3 x 64"."""
    return " x ".join("?" if axis is None else str(axis) for axis in shape)


STUDENT = Signature(
    inputs={
        "crops": ("batch", "views", CROP_CHANNELS, CROP, CROP),
        "views": ("batch", "views", VIEW_NUMBERS),
        "support": ("batch", SUPPORT_NUMBERS),
    },
    outputs={
        "distance": ("batch", 1, VOLUME, VOLUME, VOLUME),
        "log_std": ("batch", 1, COARSE, COARSE, COARSE),
        "colour": ("batch", 3, COARSE, COARSE, COARSE),
        "layout": ("batch", LAYOUT_NUMBERS),
    })
