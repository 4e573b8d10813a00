"""What a student is to answer, computed where it trains: the volumes of a batch from the store's grids."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.signature import COARSE, VOLUME
from ..synth.sdf import HALF_WIDTH
from .meshes import SDF_UNIT, MeshStore

_NEAR_SURFACE = 3.0           # voxels of the 64^3 grid: where colour is asked for


class Targets(nn.Module):
    """Signed distance and colour over the cubes of samples, of the meshes of one store.

    The store's grids are buffers, so that they go where the network is: 580 KB for each mesh.
    """

    def __init__(self, store: MeshStore):
        super().__init__()
        self.register_buffer("sdf", torch.from_numpy(store.sdf.copy()), persistent=False)
        self.register_buffer("nearest", torch.from_numpy(store.nearest.astype("int16")), persistent=False)
        ticks = (torch.arange(VOLUME) + 0.5) / VOLUME - 0.5
        self.register_buffer("centres", torch.cartesian_prod(ticks, ticks, ticks), persistent=False)

    @torch.no_grad()
    def forward(self, mesh: Tensor, target_from_cube: Tensor, point_rgb: Tensor) -> dict[str, Tensor]:
        """mesh: (B,) int64, index in the store; target_from_cube: (B, 3, 4) float32, cube (edges) -> normalised target
        frame; point_rgb: (B, 2048, 3) uint8, colours of the mesh's points.

        Returns distance (B, 1, 64, 64, 64) float32, voxels; colour (B, 3, 32, 32, 32) uint8 and near
        (B, 1, 32, 32, 32) bool, where colour is known: of the surface around every voxel near to it.
        """
        where = self.centres @ target_from_cube[:, :, :3].mT + target_from_cube[:, None, :, 3]
        distance = self._distance(mesh, where, target_from_cube)
        halves = distance[:, :, ::2, ::2, ::2], distance[:, :, 1::2, 1::2, 1::2]
        near = (halves[0] + halves[1]).abs() <= 2 * _NEAR_SURFACE
        middle = where.reshape(len(mesh), VOLUME, VOLUME, VOLUME, 3)
        middle = (middle[:, ::2, ::2, ::2] + middle[:, 1::2, 1::2, 1::2]) / 2
        cells = self.nearest.shape[-1]
        cell = ((middle + HALF_WIDTH) / (2 * HALF_WIDTH) * cells).floor().long()
        near &= ((cell >= 0) & (cell < cells)).all(dim=-1)[:, None]
        x, y, z = cell.clamp(0, cells - 1).reshape(len(mesh), -1, 3).unbind(dim=-1)
        point = self.nearest[mesh[:, None], x, y, z].long()
        colour = point_rgb.gather(1, point[..., None].expand(-1, -1, 3)).mT.reshape(len(mesh), 3, *(COARSE,) * 3)
        return {"distance": distance, "colour": colour * near, "near": near}

    def _distance(self, mesh: Tensor, where: Tensor, target_from_cube: Tensor) -> Tensor:
        """(B, 1, 64, 64, 64) voxels, at points (B, 64^3, 3) of the normalised target frame.

        Where the shape was squeezed, distances are corrected to first order by their gradient.
        """
        grid = self.sdf[mesh][:, None].float() * SDF_UNIT
        inside = where.clamp(-HALF_WIDTH, HALF_WIDTH)
        shape = (len(mesh), VOLUME, VOLUME, VOLUME)
        # grid_sample takes the last axis of the grid first
        value = functional.grid_sample(grid, (inside / HALF_WIDTH).flip(-1).reshape(*shape, 3), mode="bilinear",
                                       padding_mode="border", align_corners=True)
        value = value + (where - inside).norm(dim=-1).reshape(shape)[:, None]
        return value / _steepness(value, target_from_cube[:, :, :3])


def _steepness(distance: Tensor, target_from_cube: Tensor) -> Tensor:
    """How much of the target's unit a voxel is along the distance's gradient.

    distance: (B, 1, n, n, n), in the target's unit; target_from_cube: (B, 3, 3).  The gradient's direction alone
    counts: its length, 1 in the target's frame, is less in the middle of thin walls, where it turns round.
    """
    along = torch.stack(torch.gradient(distance[:, 0], dim=(1, 2, 3)), dim=1).flatten(2)
    length = along.norm(dim=1) + 1e-12
    inverse = torch.linalg.inv_ex(target_from_cube).inverse         # inv would wait for a GPU to look for errors
    in_target = inverse.mT @ along
    steepness = length / (in_target.norm(dim=1) * distance.shape[-1] + 1e-12)
    return steepness.reshape(distance.shape)


def with_targets(batch: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
    """A batch of samples, tensors of what samples.stacked gives, with targets in place of what they are made of."""
    made_of = ("mesh", "target_from_cube", "point_rgb")
    rest = {name: tensor for name, tensor in batch.items() if name not in made_of}
    return rest | targets(*(batch[name] for name in made_of))
