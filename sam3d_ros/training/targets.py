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

    @torch.no_grad()
    def forward(self, mesh: Tensor, target_from_cube: Tensor, point_rgb: Tensor) -> dict[str, Tensor]:
        """mesh: (B,) int64, index in the store; target_from_cube: (B, 3, 4) float32, cube (edges) -> normalised target
        frame; point_rgb: (B, 2048, 3) uint8, colours of the mesh's points.

        Returns distance (B, 1, 64, 64, 64) float32, voxels; colour (B, 3, 32, 32, 32) uint8 and near
        (B, 1, 32, 32, 32) bool, where colour is known: of the surface around every voxel near to it.
        """
        distance = self._distance(mesh, target_from_cube)
        halves = distance[:, :, ::2, ::2, ::2], distance[:, :, 1::2, 1::2, 1::2]
        near = (halves[0] + halves[1]).abs() <= 2 * _NEAR_SURFACE
        where = _voxel_centres(target_from_cube, COARSE)
        cells = self.nearest.shape[-1]
        cell = ((where + 1) / 2 * cells).floor().long()
        near &= ((cell >= 0) & (cell < cells)).all(dim=1, keepdim=True)
        z, y, x = cell.clamp(0, cells - 1).flatten(2).unbind(dim=1)
        point = self.nearest[mesh[:, None], x, y, z].long()
        colour = point_rgb.gather(1, point[..., None].expand(-1, -1, 3)).mT.reshape(len(mesh), 3, *(COARSE,) * 3)
        return {"distance": distance, "colour": colour * near, "near": near}

    def _distance(self, mesh: Tensor, target_from_cube: Tensor) -> Tensor:
        """(B, 1, 64, 64, 64) voxels; where the shape was squeezed, corrected to first order by the gradient."""
        grid = self.sdf[mesh][:, None].float() * SDF_UNIT
        where = _voxel_centres(target_from_cube, VOLUME)
        value = functional.grid_sample(grid, where.movedim(1, -1), mode="bilinear", padding_mode="border",
                                       align_corners=True)
        beyond = HALF_WIDTH * (where.abs() - 1).clamp_min(0).square().sum(dim=1).sqrt()         # the grid's border
        value = value[:, 0] + beyond
        return (value / _steepness(value, target_from_cube[:, :, :3]))[:, None]


def _voxel_centres(target_from_cube: Tensor, n: int) -> Tensor:
    """Centres of an n^3 grid over the cube, (B, 3, n, n, n), in half widths of the store's grids, z before y and x, as
    grid_sample wants them; target_from_cube: (B, 3, 4)."""
    ticks = (torch.arange(n, device=target_from_cube.device) + 0.5) / n - 0.5
    x, y, z, shift = (target_from_cube.flip(1) / HALF_WIDTH)[..., None, None, None].unbind(dim=2)
    return x * ticks[:, None, None] + y * ticks[:, None] + z * ticks + shift


def _steepness(distance: Tensor, target_from_cube: Tensor) -> Tensor:
    """How much of the target's unit a voxel is along the distance's gradient.

    distance: (B, n, n, n), in the target's unit; target_from_cube: (B, 3, 3).  The gradient's direction alone
    counts: its length, 1 in the target's frame, is less in the middle of thin walls, where it turns round.
    """
    inverse = torch.linalg.inv_ex(target_from_cube).inverse         # inv would wait for a GPU to look for errors
    squared = (inverse @ inverse.mT)[..., None, None, None]          # of the gradient's length in the target's frame
    along = torch.gradient(distance, dim=(1, 2, 3))
    # Term by term, of which a compiler makes one pass: with a product of matrices, all of this takes twice the time.
    length = sum(part * part for part in along).sqrt()
    in_target = sum(squared[:, i, j] * along[i] * along[j] for i in range(3) for j in range(3)).sqrt()
    return (length + 1e-12) / (in_target * distance.shape[-1] + 1e-12)


def with_targets(batch: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
    """A batch of samples, tensors of what samples.stacked gives, with targets in place of what they are made of."""
    made_of = ("mesh", "target_from_cube", "point_rgb")
    rest = {name: tensor for name, tensor in batch.items() if name not in made_of}
    return rest | targets(*(batch[name] for name in made_of))
