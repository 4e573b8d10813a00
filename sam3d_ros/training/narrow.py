"""A narrower student from a wide one: the channels that explain the others best are kept, and stand in for them."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..models.folded import Weights, folded_student
from ..models.student import Student, StudentConfig

_DAMPING = 1e-4              # of the mean variance of a channel: what a channel adds beyond noise
_VALUES = 100_000            # activations per channel that a fit looks at
_BATCH = 16

# Layers that write the same channels, because their answers are added, and the layers that read them.
_CHANNELS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("stem.0", "lift0"), ("down1.0.0", "up0.0")),
    (("down1.0.0",), ("down1.1.0",)),
    (("down1.1.0", "fine", "lift1"), ("down2.0.0", "up1.0.0")),
    (("down2.0.0",), ("down2.1.0",)),
    (("down2.1.0", "coarse", "lift2"), ("down3.0.0", "up2.0.0")),
    (("down3.0.0",), ("down3.1.0",)),
    (("down3.1.0",), ("down3.2.0",)),
    (("down3.2.0", "deep3.0.inner.1"), ("deep3.0.inner.0.0", "lift2", "layout.0")),
    (("deep3.0.inner.0.0",), ("deep3.0.inner.1",)),
    (("up2.0.0",), ("up2.1.0",)),
    (("up2.1.0", "deep2.0.inner.1"), ("deep2.0.inner.0.0", "lift1")),
    (("deep2.0.inner.0.0",), ("deep2.0.inner.1",)),
    (("up1.0.0",), ("up1.1.0",)),
    (("up1.1.0",), ("lift0",)),
    (("up0.0",), ("head", "look")),
)
# In the order of the network: what a layer reads is settled before its filters are fitted.
_READERS = ("down1.0.0", "down1.1.0", "down2.0.0", "down2.1.0", "down3.0.0", "down3.1.0", "down3.2.0",
            "deep3.0.inner.0.0", "deep3.0.inner.1", "layout.0", "lift2", "up2.0.0", "up2.1.0", "deep2.0.inner.0.0",
            "deep2.0.inner.1", "lift1", "up1.0.0", "up1.1.0", "lift0", "up0.0", "head", "look")


@torch.no_grad()
def narrowed(wide: Student, width: int, weights: Weights, samples: dict[str, np.ndarray]) -> Weights:
    """Weights, by layer, of a student of `width` that imitates `wide`, which has one residual block a level.

    wide: as folded.student_from_onnx gives it, weights: as layer_weights does; samples: inputs, as
    samples.fixed_samples gives them.

    Of every group of channels a subset is chosen by greedy selection (columns of the covariance; Farahat et al. 2011,
    "An efficient greedy method for unsupervised feature selection", section 4), and every reader's filters are composed
    with the least-squares map from what is left to what it used to read (as He et al. 2017, "Channel pruning for
    accelerating very deep neural networks", section 3.1, but layer by layer on the narrow network's own activations).
    """
    config = StudentConfig(width, wide.config.blocks)
    wanted = _inputs(wide, _READERS, samples)
    rows: dict[str, np.ndarray] = {}
    columns: dict[str, np.ndarray] = {}
    for writers, readers in _CHANNELS:
        count = len(weights[writers[0]][0]) * width // wide.config.width
        chosen = _chosen([(wanted[name], torch.from_numpy(weights[name][0])) for name in readers], count)
        rows |= dict.fromkeys(writers, chosen)
        columns |= dict.fromkeys(readers, chosen)
    fewer = weights | {name: (weights[name][0][kept], weights[name][1][kept]) for name, kept in rows.items()}
    narrow = fewer | {name: (fewer[name][0][:, kept], fewer[name][1]) for name, kept in columns.items()}
    for name in _READERS:
        given = _inputs(folded_student(config, narrow), (name,), samples)[name]
        narrow[name] = _composed(*fewer[name], *_imitation(given, wanted[name]))
    return narrow


def _inputs(network: Student, names: tuple[str, ...], samples: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """What layers read, as rows (values, channels), the same places of every network."""
    caught: dict[str, list[Tensor]] = {name: [] for name in names}

    def catch(name: str, x: Tensor) -> None:
        rows = x.movedim(1, -1).flatten(0, -2)
        caught[name].append(rows[::max(1, len(samples["crops"]) * len(rows) // (len(x) * _VALUES))])

    hooks = [network.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: catch(name, x[0]))
             for name in names]
    for start in range(0, len(samples["crops"]), _BATCH):
        network(*(torch.from_numpy(samples[name][start:start + _BATCH]) for name in ("crops", "views", "support")))
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows) for name, rows in caught.items()}


def _chosen(readers: list[tuple[Tensor, Tensor]], count: int) -> np.ndarray:
    """The `count` channels from which all can be told best, each channel weighed by the filters that read it."""
    covariances = []
    for rows, weight in readers:
        strength = weight.transpose(0, 1).flatten(1).norm(dim=1).double()
        covariance = torch.cov(rows.T.double()) * strength[:, None] * strength
        covariances.append(covariance / covariance.trace())
    left = torch.stack(covariances)
    chosen: list[int] = []
    for _ in range(count):
        own = left.diagonal(dim1=1, dim2=2)
        explained = (left.square().sum(dim=1) / (own + _DAMPING / own.shape[1])).sum(dim=0)
        explained[chosen] = -1
        best = int(explained.argmax())
        column = left[:, :, best]
        left = left - column[:, :, None] * column[:, None, :] / (column[:, best, None, None] + 1e-12)
        chosen.append(best)
    return np.array(sorted(chosen))


def _imitation(given: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """matrix (W, G) and offset (W,) of the affine map of rows (R, G) that comes closest to rows (R, W)."""
    mean, wanted_mean = given.mean(dim=0).double(), wanted.mean(dim=0).double()
    centred = given.double() - mean
    square = centred.T @ centred
    damping = _DAMPING * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    matrix = torch.linalg.solve(square + damping, centred.T @ (wanted.double() - wanted_mean)).T
    return matrix.float(), (wanted_mean - matrix @ mean).float()


def _composed(weight: np.ndarray, bias: np.ndarray, matrix: Tensor, offset: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A layer behind an affine map of its inputs; the zeros at the border are taken for mapped ones."""
    filters = torch.from_numpy(weight)
    composed = torch.einsum("oi...,ij->oj...", filters, matrix)
    shift = torch.einsum("oi...,i->o...", filters, offset).reshape(len(bias), -1).sum(dim=1)
    return composed.numpy(), bias + shift.numpy()
