"""Evidence of one view in plain NumPy: what the network's graph has to compute, and what made-up engines work from."""
import numpy as np

from sam3d_ros.runtime.signature import CROP, CROP_SPAN, VOLUME

TRUNCATION = 3 / 32


def evidence(crop: np.ndarray, view: np.ndarray) -> np.ndarray:
    """crop (6, 96, 96), view (11,) -> signed distance to the depth, own mask, validity: (3, 64, 64, 64)."""
    ticks = (np.arange(VOLUME) + 0.5) / VOLUME - 0.5
    cube = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(cube @ view[:9].reshape(3, 3).T, -1, 0)
    scale = 1 / (1 + z / view[9]) / CROP_SPAN * CROP
    column = np.rint(x * scale + CROP / 2 - 0.5).astype(int)
    row = np.rint(y * scale + CROP / 2 - 0.5).astype(int)
    inside = (row >= 0) & (row < CROP) & (column >= 0) & (column < CROP)
    depth, valid, own = crop[:3, row.clip(0, CROP - 1), column.clip(0, CROP - 1)] * inside
    return np.stack([np.clip((depth - z) / TRUNCATION, -1, 1) * valid, own, valid]).astype(np.float32)
