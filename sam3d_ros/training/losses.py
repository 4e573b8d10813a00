"""What the student is trained to minimise."""
from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SOFTNESS = 0.9           # voxels: occupancy is sigmoid(-distance / SOFTNESS), a surface blurred by about a voxel
BAND = 4.0               # voxels: distances matter up to here
_WEIGHTS = {"occupancy": 1.0, "overlap": 1.0, "distance": 0.1, "spread": 0.05, "colour": 0.5, "layout": 0.05}


def student_losses(outputs: tuple[Tensor, ...], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weighted losses of a batch; their sum is what training minimises.

    outputs: as Student.forward gives them, float32; batch: as samples.Stream gives it.

    occupancy, overlap: binary cross-entropy on soft occupancy, and soft Dice (Milletari et al. 2016, V-Net, section 3);
    distance: absolute error within BAND of the surface; spread: negative log-likelihood of that error under a Laplace
    distribution (Kendall and Gal 2017, section 2.2), of which only the spread learns; colour: absolute error where a
    surface is near; layout: directions by their angle, the axis up to its sign, centre and ln edge by absolute error.
    """
    distance, log_std, colour, layout = outputs
    true = batch["distance"]
    inside = (true < 0).to(distance.dtype)
    occupied = torch.sigmoid(-distance / SOFTNESS)
    axes = (1, 2, 3, 4)
    overlap = 2 * (occupied * inside).sum(axes) / ((occupied + inside).sum(axes) + 1)
    clipped = true.clamp(-BAND, BAND)
    error = (distance.clamp(-BAND - 1, BAND + 1) - clipped).abs()
    near = (true.abs() < BAND).to(distance.dtype)
    losses = {
        "occupancy": functional.binary_cross_entropy_with_logits(-distance / SOFTNESS, torch.sigmoid(-true / SOFTNESS)),
        "overlap": 1 - overlap.mean(),
        "distance": (error * near).sum() / near.sum().clamp_min(1),
        "spread": _laplace(error.detach(), near, log_std),
        "colour": _colour(colour, batch),
        "layout": _layout(layout, batch["layout"]),
    }
    return {name: _WEIGHTS[name] * loss for name, loss in losses.items()}


def _laplace(error: Tensor, near: Tensor, log_std: Tensor) -> Tensor:
    """Mean of error / b + ln b with b = sigma / sqrt 2, over the 64^3 voxels near the surface, sigma given at 32^3."""
    pooled = functional.avg_pool3d(error * near, 2)
    share = functional.avg_pool3d(near, 2)
    log_b = log_std - 0.5 * math.log(2)
    return (pooled * torch.exp(-log_b) + share * log_b).sum() / share.sum().clamp_min(1)


def _colour(colour: Tensor, batch: dict[str, Tensor]) -> Tensor:
    near = batch["near"].to(colour.dtype)
    error = (colour - batch["colour"].to(colour.dtype) / 255).abs() * near
    return error.sum() / (3 * near.sum()).clamp_min(1)


def _layout(layout: Tensor, true: Tensor) -> Tensor:
    up = 1 - (layout[:, :3] * true[:, :3]).sum(dim=1)
    axis = true[:, 6] * (1 - (layout[:, 3:6] * true[:, 3:6]).sum(dim=1).abs())
    rest = (layout[:, 6:] - true[:, 7:]).abs()
    return (up + axis + 3 * rest[:, :3].sum(dim=1) + rest[:, 3]).mean()
