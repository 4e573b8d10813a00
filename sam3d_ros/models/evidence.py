"""Evidence inside the graph: what all views of an object say about every voxel of its cube.

Tensors are those of runtime/signature.py; V views, B objects.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.signature import COARSE, CROP_SPAN

CHANNELS = 3
PARTS = 8                # voxels of the 64^3 grid in one of the 32^3 grid
TRUNCATION = 3 / 32      # of the cube's edge


class Projection(nn.Module):
    """Voxel centres of an n^3 grid, seen in the crops.

    Only the coordinates along one axis are stored: a file would carry whole grids as constants.
    """

    def __init__(self, resolution: int):
        super().__init__()
        self.resolution = resolution
        self.register_buffer("ticks", (torch.arange(resolution) + 0.5) / resolution - 0.5, persistent=False)

    def along(self, direction: Tensor) -> Tensor:
        """direction (..., 3) -> its product with every voxel's centre (edges, -0.5 to 0.5), (..., n, n, n)."""
        x, y, z = (direction[..., axis, None, None, None] for axis in range(3))
        return x * self.ticks[:, None, None] + y * self.ticks[:, None] + z * self.ticks

    def points(self, axes: Tensor) -> Tensor:
        """axes (N, 3, 3), camera_from_cube -> the voxels' centres relative to the cube's, (N, 3, n^3), edges."""
        return self.along(axes).flatten(2)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """views (N, 11) -> where each voxel appears, (N, n^2, n, 2) in grid_sample's units, and its depth relative to
        the cube's centre, (N, n^3), in edges.

        Depths stay relative to the centre throughout: their differences then survive half precision.
        """
        sideways, depth = self.points(views[:, :9].reshape(-1, 3, 3)).split([2, 1], dim=1)
        scale = (2 / CROP_SPAN) / (1 + depth / views[:, 9:10, None]).clamp_min(0.05)
        where = (sideways * scale).transpose(1, 2)      # faster than stacking x and y last
        return where.reshape(views.shape[0], -1, self.resolution, 2), depth[:, 0]


class FoldedProjection(Projection):
    """The centres of the eight parts of every voxel, the same part of all voxels together: (8, n^3) for n^3."""

    def __init__(self, resolution: int):
        super().__init__(resolution)
        ends = torch.tensor([-0.25, 0.25]) / resolution
        self.register_buffer("offsets", torch.cartesian_prod(ends, ends, ends), persistent=False)

    def points(self, axes: Tensor) -> Tensor:
        """axes (N, 3, 3), camera_from_cube -> the parts' centres relative to the cube's, (N, 3, 8 n^3), edges."""
        x, y, z = (axes[..., axis, None] * self.offsets[:, axis] for axis in range(3))
        return ((x + y + z)[..., None] + super().points(axes)[:, :, None]).flatten(2)


def unfolded(folded: Tensor) -> Tensor:
    """(B, 8 C, n, n, n), the parts of a voxel one behind the other -> (B, C, 2n, 2n, 2n)."""
    n = folded.shape[-1]
    parts = folded.reshape(-1, folded.shape[1] // PARTS, 2, 2, 2, n, n, n).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.reshape(-1, folded.shape[1] // PARTS, 2 * n, 2 * n, 2 * n)


def lifted(features: Tensor, where: Tensor, weight: Tensor, views: int, mode: str = "bilinear") -> Tensor:
    """Image features at the voxels that they may show, averaged over the views.

    features: (B V, C, h, w); where: (B V, n^2, n, 2); weight: (B, V), adds up to 1; returns (B, C, n, n, n).
    """
    n = where.shape[2]
    sampled = functional.grid_sample(features, where, mode=mode, padding_mode="zeros", align_corners=False)
    sampled = sampled.reshape(-1, views, features.shape[1], n, n, n)
    return (sampled * weight[:, :, None, None, None, None]).sum(dim=1)


class Evidence(nn.Module):
    """Signed distance to the observed depth, own mask and depth validity on a 64^3 grid, fused over the views.

    The grid comes folded, as 8 channels at 32^3 (space to depth), and never takes another order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.projection = FoldedProjection(COARSE)

    def forward(self, crops: Tensor, views: Tensor) -> Tensor:
        """crops (B, V, 6, 96, 96), views (B, V, 11) -> (B, 24, 32, 32, 32), see `unfolded`.

        Channels, of 8 each: signed distance along the optical axis to the observed depth, positive in front of it,
        truncated at 3/32 of the edge and scaled to -1..1 (0 without a reading); 1 where the voxel projects into the
        object's own mask; 1 where it projects onto a reading.  Every pixel counts, not only the object's own:
        neighbours and the table carve free space.

        Of several views, one that sees a voxel's surroundings from in front of the surface, or within the truncation
        behind it, says more than one that only knows that the surface hides it (Curless and Levoy 1996, section 3):
        distances are averaged with the weight 1 + truncated distance.  A voxel belongs to the mask as far as the views
        agree; views in which another object hides it do not vote.
        """
        count = crops.shape[1]
        flat = views.reshape(-1, views.shape[-1])
        where, depth = self.projection(flat)
        images = crops.reshape(-1, *crops.shape[2:])[:, :3]
        sampled = functional.grid_sample(images, where, mode="nearest", padding_mode="zeros", align_corners=False)
        sampled = sampled.reshape(-1, count, 3, depth.shape[-1])
        depth = depth.reshape(-1, count, depth.shape[-1])
        weight = views[:, :, 10:11]
        valid = sampled[:, :, 1] * weight
        distance = ((sampled[:, :, 0] - depth) / TRUNCATION).clamp(-1, 1)
        trust = valid * (1.02 + distance)        # a little weight is left where every view is behind the surface
        fused = (distance * trust).sum(dim=1) / trust.sum(dim=1).clamp_min(1e-4)
        own = sampled[:, :, 2]
        hidden = valid * (1 - own) * (distance <= -1).to(own.dtype)
        vote = weight - 0.98 * hidden
        mask = (own * vote).sum(dim=1) / vote.sum(dim=1)
        volume = torch.stack([fused, mask, valid.amax(dim=1)], dim=1)
        return volume.reshape(-1, CHANNELS * PARTS, COARSE, COARSE, COARSE)
