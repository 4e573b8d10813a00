"""The student network: volumetric completion in one forward pass, from crops to volumes."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.signature import COARSE, LAYOUT_NUMBERS
from .backbone import COARSE_CHANNELS, FINE_CHANNELS, Backbone
from .evidence import CHANNELS, PARTS, Evidence, Projection, lifted, unfolded

_FOLDED = PARTS * CHANNELS           # channels of the evidence
_EXTRA = 5                           # channels beside them at 32^3: R, G, B, height over the support, support known


@dataclass(frozen=True)
class StudentConfig:
    """Sizes of a student.

    width: channels at 32^3, doubled at every level below; blocks: residual blocks at 4^3 and 8^3
    """

    width: int = 32
    blocks: int = 1


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm3d(outputs),
                         nn.ReLU(inplace=True))


class _Residual(nn.Module):
    """Two convolutions beside a shortcut; starts as the identity (Goyal et al. 2017, section 5.1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.inner = nn.Sequential(_block(channels, channels), nn.Conv3d(channels, channels, 3, 1, 1, bias=False),
                                   nn.BatchNorm3d(channels))
        nn.init.zeros_(self.inner[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, n, n, n) -> the same shape."""
        return functional.relu(x + self.inner(x))


class Student(nn.Module):
    """3D U-Net over evidence and lifted image features; inputs and outputs as in runtime/signature.py.

    Evidence comes folded, 64^3 x 3 as 32^3 x 24 (space to depth), and the answer is unfolded from 32^3 x 8, because
    thin convolutions at 64^3 cost ten times the time for the same operations.  Skip connections add rather than
    concatenate: a quarter fewer operations.  Colour enters as pixels at 32^3 and as features at 16^3 and 8^3.
    """

    def __init__(self, config: StudentConfig = StudentConfig()):
        super().__init__()
        self.config = config
        w1, w2, w4, w8 = (config.width * factor for factor in (1, 2, 4, 8))
        self.evidence = Evidence()
        self.backbone = Backbone()
        self.at_half, self.at_quarter, self.at_eighth = (Projection(n) for n in (COARSE, COARSE // 2, COARSE // 4))
        self.stem = _block(_FOLDED + _EXTRA, w1)
        self.down1 = nn.Sequential(_block(w1, w2, 2), _block(w2, w2))
        self.fine = nn.Conv3d(FINE_CHANNELS, w2, 1)
        self.down2 = nn.Sequential(_block(w2, w4, 2), _block(w4, w4))
        self.coarse = nn.Conv3d(COARSE_CHANNELS, w4, 1)
        self.down3 = nn.Sequential(_block(w4, w8, 2), _block(w8, w8), _block(w8, w8))
        self.deep3 = nn.Sequential(*(_Residual(w8) for _ in range(config.blocks)))
        self.lift2, self.up2 = nn.Conv3d(w8, w4, 1), nn.Sequential(_block(w4, w4), _block(w4, w4))
        self.deep2 = nn.Sequential(*(_Residual(w4) for _ in range(config.blocks)))
        self.lift1, self.up1 = nn.Conv3d(w4, w2, 1), nn.Sequential(_block(w2, w2), _block(w2, w2))
        self.lift0, self.up0 = nn.Conv3d(w2, w1, 1), _block(w1, w1)
        self.head = nn.Conv3d(w1, 8, 1)                    # signed distance, unfolded
        self.look = nn.Conv3d(w1, 4, 1)                    # ln sigma, R, G, B
        self.layout = nn.Sequential(nn.Linear(w8, 64), nn.ReLU(inplace=True), nn.Linear(64, LAYOUT_NUMBERS))
        for convolution in (self.fine, self.coarse):
            nn.init.zeros_(convolution.weight)
            nn.init.zeros_(convolution.bias)

    def forward(self, crops: Tensor, views: Tensor, support: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """distance, log_std, colour and layout of B objects."""
        return self.complete(*self.lift(crops, views, support))

    def complete(self, x: Tensor, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """distance, log_std, colour and layout of B objects, from what `lift` returns."""
        level0 = self.stem(x)
        level1 = self.down1(level0) + self.fine(fine)
        level2 = self.down2(level1) + self.coarse(coarse)
        bottom = self.deep3(self.down3(level2))
        y = self.deep2(self.up2(_twice(self.lift2(bottom)) + level2))
        y = self.up1(_twice(self.lift1(y)) + level1)
        y = self.up0(_twice(self.lift0(y)) + level0)
        log_std, colour = self.look(y).flatten(2).split([1, 3], dim=1)
        grid = (COARSE,) * 3
        return (unfolded(self.head(y)), log_std.clamp(-4, 3).unflatten(2, grid), colour.sigmoid().unflatten(2, grid),
                _unit_directions(self.layout(bottom.mean(dim=(2, 3, 4)))))

    def lift(self, crops: Tensor, views: Tensor, support: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input of the stem (B, 29, 32, 32, 32), and image features at 16^3 (B, 32, ...) and 8^3 (B, 96, ...)."""
        count, flat = crops.shape[1], views.reshape(-1, views.shape[-1])
        weight = views[:, :, 10] / views[:, :, 10].sum(dim=1, keepdim=True)
        image = crops.reshape(-1, *crops.shape[2:])[:, 3:]
        fine, coarse = self.backbone(image)
        height = self.at_half.along(support[:, None, :3]) + support[:, 3:4, None, None, None]
        plane = torch.cat([height.clamp(-1, 1), support[:, 4:5, None, None, None].expand_as(height)], dim=1)
        pixels = lifted(image, self.at_half(flat)[0], weight, count)
        return (torch.cat([self.evidence(crops, views), pixels, plane], dim=1),
                lifted(fine, self.at_quarter(flat)[0], weight, count),
                lifted(coarse, self.at_eighth(flat)[0], weight, count))


def _unit_directions(layout: Tensor) -> Tensor:
    return torch.cat([functional.normalize(layout[:, :3], dim=1), functional.normalize(layout[:, 3:6], dim=1),
                      layout[:, 6:]], dim=1)


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
