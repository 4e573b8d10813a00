"""Errors of depth cameras and of instance masks, for training on rendered images.

All functions take a `rng` and return new arrays; depth is (H, W) float32 in metres with 0 = no reading, masks are
(H, W) bool.  Ranges follow what is seen on structured-light and stereo cameras: edges blanked or flying, holes, a
smooth error of some millimetres, masks a few pixels too wide, too narrow or aside.
"""
from __future__ import annotations

import numpy as np
from scipy import ndimage

EDGE_STEP = 0.015  # metres between neighbouring pixels that make a depth discontinuity


def axial_noise(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise along the ray: 0.15 % of the depth and 0.5 mm (1 sigma)."""
    noise = rng.normal(size=depth.shape) * (0.0015 * depth + 0.0005)
    return np.where(depth > 0, depth + noise, 0).astype(np.float32)


def quantised(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Disparity in steps: z = k / d with a step of 1 to 3 mm at 1 m (structured light at 8 subpixel levels)."""
    step = rng.uniform(0.001, 0.003)  # of inverse depth: dz = z^2 * step
    inverse = 1 / np.maximum(depth, 0.05)
    return np.where(depth > 0, 1 / (np.maximum(np.round(inverse / step), 1) * step), 0).astype(np.float32)


def _edges(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    far = ndimage.maximum_filter(depth, 3)
    near = ndimage.minimum_filter(np.where(depth > 0, depth, 9.0), 3)
    return (far - near) > EDGE_STEP, near, np.minimum(np.maximum(far, near), near + 0.3)


def blanked_edges(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """No reading at a share of the pixels along depth discontinuities."""
    edge = _edges(depth)[0]
    return np.where(edge & (rng.random(depth.shape) < rng.uniform(0.3, 1)), 0, depth)


def flying_pixels(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mixtures of the near and the far depth at a share of the pixels along depth discontinuities."""
    edge, near, far = _edges(depth)
    weight = rng.random(depth.shape)
    return np.where(edge & (rng.random(depth.shape) < rng.uniform(0.2, 0.8)), near * weight + far * (1 - weight), depth)


def stereo_shadow(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A band without readings beside near objects, on the side that only one of the two eyes sees."""
    band = 2 * int(rng.integers(1, 5))
    side = int(rng.choice([-1, 1]))
    inverse = np.where(depth > 0, 1 / np.maximum(depth, 0.05), 0)
    beside = ndimage.maximum_filter1d(inverse, band + 1, axis=1, origin=side * (band // 2))
    return np.where(beside - inverse > 0.05, 0, depth)


def holes(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blobs without readings over 2 to 30 % of the image (dark or shiny surfaces)."""
    field = ndimage.gaussian_filter(rng.normal(size=depth.shape), rng.uniform(1, 5))
    return np.where(field > np.quantile(field, 1 - rng.uniform(0.02, 0.3)), 0, depth)


def dropout(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Single pixels without readings, up to 30 %."""
    return np.where(rng.random(depth.shape) < rng.uniform(0, 0.3), 0, depth)


def smooth_error(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Slowly varying error of up to 3 mm (1 sigma), as left by the matching window."""
    field = ndimage.gaussian_filter(rng.normal(size=depth.shape), rng.uniform(1, 4))
    field *= rng.uniform(0, 0.006) / max(float(field.std()), 1e-6) * 0.5
    return np.where(depth > 0, depth + field, 0)


def smeared(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Object outlines fattened or ragged: each pixel takes the depth of a neighbour up to 2 pixels away."""
    rows, columns = np.indices(depth.shape)
    shift = ndimage.gaussian_filter(rng.normal(size=(2,) + depth.shape), (0, 1, 1)) * rng.uniform(1, 5)
    rows = np.clip(rows + np.round(shift[0]).astype(int), 0, depth.shape[0] - 1)
    columns = np.clip(columns + np.round(shift[1]).astype(int), 0, depth.shape[1] - 1)
    return depth[rows, columns]


def misregistered(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Depth moved against the colour image by up to 2 pixels."""
    return np.roll(depth, tuple(rng.integers(-2, 3, 2)), (0, 1))


def unseen_surfaces(depth: np.ndarray, facing: np.ndarray, steepness: np.ndarray, colour: np.ndarray, mask: np.ndarray,
                    rng: np.random.Generator) -> np.ndarray:
    """No reading, but for some pixels, on surfaces seen at a glancing angle, too dark to return light, or polished.

    A polished lid or label throws the projector's light past the camera where it is turned a certain way: often a whole
    face of the object, in the middle of its mask; of tins the lid, which lies level.
    facing: (H, W) cosine between surface normal and ray; steepness: (H, W) cosine between ray and vertical, which is
    that of level faces; colour: (H, W, 3) uint8; mask: (H, W) bool, the object
    """
    lost = np.zeros(depth.shape, bool)
    if rng.random() < 0.2:
        lost |= mask & (np.abs(facing - steepness) < 0.03)
    if rng.random() < 0.25:
        turned = rng.uniform(0.1, 0.9)
        lost |= mask & (np.abs(facing - turned) < rng.uniform(0.05, 0.3))
    if rng.random() < 0.4:
        lost |= facing < rng.uniform(0.08, 0.35)
    if rng.random() < 0.15:
        lost |= colour.max(axis=2) < rng.uniform(20, 60)
    return np.where(lost & (rng.random(depth.shape) < rng.uniform(0.5, 1)), 0, depth)


def pasted_occluder(depth: np.ndarray, mask: np.ndarray, colour: np.ndarray,
                    rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth, mask and colour with a foreground object pasted over 10 to 90 % of the mask.

    Render-and-paste, as in the mid-training of SAM 3D (2025): a smooth blob or a strip, nearer than the object.
    """
    rows, columns = np.nonzero(mask)
    if rng.random() < 0.5:
        field = ndimage.gaussian_filter(rng.normal(size=depth.shape), rng.uniform(0.04, 0.15) * len(depth))
    else:
        angle = rng.uniform(0, 2 * np.pi)
        grid = np.indices(depth.shape)
        field = np.cos(angle) * grid[0] + np.sin(angle) * grid[1]
    covered = field >= np.quantile(field[rows, columns], 1 - rng.uniform(0.1, 0.9) ** 1.5)
    near = np.percentile(depth[mask & (depth > 0)], 5) if (mask & (depth > 0)).any() else 0.5
    sheet = (near * rng.uniform(0.75, 0.98)).astype(np.float32)
    paint = rng.uniform(0, 255, 3)
    painted = rng.normal(size=colour.shape)
    painted *= 8
    painted += paint
    painted = np.clip(painted, 0, 255, out=painted).astype(np.uint8)
    return np.where(covered, sheet, depth), mask & ~covered, np.where(covered[..., None], painted, colour)


# (probability, error), applied in this order: matching errors, lost readings, then registration.
_DEPTH_ERRORS = ((0.3, smeared), (0.5, smooth_error), (0.3, quantised), (0.35, flying_pixels), (0.6, blanked_edges),
                 (0.3, stereo_shadow), (0.3, holes), (0.15, dropout), (0.3, misregistered))


def corrupted_depth(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random combination of all depth errors; of the white noise of axial_noise a tenth to all."""
    depth = depth + rng.uniform(0.1, 1) * (axial_noise(depth, rng) - depth)
    for probability, error in _DEPTH_ERRORS:
        if rng.random() < probability:
            depth = error(depth, rng)
    return depth.astype(np.float32)


def corrupted_mask(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask as detectors make them: too wide (up to 5 pixels), too narrow (4), leaking, cut off, or aside (2).

    Of a thin object nothing may be left.
    """
    kind = rng.random()
    if kind < 0.35:
        mask = ndimage.binary_dilation(mask, iterations=int(rng.integers(1, 6)))
    elif kind < 0.6:
        mask = ndimage.binary_erosion(mask, iterations=int(rng.integers(1, 5)))
    if rng.random() < 0.3 and mask.any():  # ragged outline: leaks and cuts
        field = ndimage.gaussian_filter(rng.normal(size=mask.shape), rng.uniform(1.5, 5))
        field *= rng.uniform(0.5, 4) / max(float(field.std()), 1e-6)
        outside = ndimage.distance_transform_edt(~mask)
        inside = ndimage.distance_transform_edt(mask)
        mask = (outside - inside) < field
    if rng.random() < 0.3:
        mask = np.roll(mask, tuple(rng.integers(-2, 3, 2)), (0, 1))
    return mask
