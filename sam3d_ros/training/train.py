"""Training of the student, resumable at any moment.

    python -m sam3d_ros.training.train --data ../shared/data --run training_runs/student --minutes 60

Samples are rendered by worker processes while the network trains, and each is seen about once.
"""
from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..models.student import Student
from .meshes import MeshStore, build_store
from .samples import Samples, make_batch, make_samples

BATCH = 16
SHARD = 1600             # samples per file
SOFTNESS = 0.9           # voxels: a target is sigmoid(-distance / SOFTNESS), a surface blurred by about a voxel
LEARNING_RATE = 2e-3
WARM_UP = 100            # steps
EMA_DECAY = 0.998


def loss_of(logits: Tensor, distance: Tensor) -> Tensor:
    """Binary cross-entropy on soft occupancy plus soft Dice (Milletari et al. 2016, V-Net, section 3).

    logits, distance: (B, 1, 64, 64, 64); distance in voxels, negative inside.
    """
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, torch.sigmoid(-distance / SOFTNESS))
    inside, predicted = (distance < 0).float(), logits.sigmoid()
    axes = (1, 2, 3, 4)
    dice = 2 * (predicted * inside).sum(axes) / ((predicted + inside).sum(axes) + 1)
    return cross_entropy + 1 - dice.mean()


@torch.no_grad()
def mean_iou(model: torch.nn.Module, samples: Samples, sdf: np.ndarray) -> float:
    """Mean volumetric IoU of the predicted and the true inside over all samples."""
    model.eval()
    ious = []
    for start in range(0, len(samples), BATCH):
        evidence, distance = make_batch(samples.take(np.arange(start, min(start + BATCH, len(samples)))), sdf)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = (model(torch.from_numpy(evidence)) > 0).numpy()
        true = distance < 0
        axes = (1, 2, 3, 4)
        ious.append((predicted & true).sum(axes) / np.maximum((predicted | true).sum(axes), 1))
    model.train()
    return float(np.concatenate(ious).mean())


def _write_shards(store_path: Path, folder: Path, first: int, step: int, count: int) -> None:
    """Worker process: render shards first, first + step, ... below count; those that exist are left alone."""
    store = MeshStore.load(store_path)
    for number in range(first, count, step):
        path = folder / f"shard_{number:05d}.npz"
        if not path.exists():
            make_samples(store, SHARD, seed=1000 + number).save(path)


def _batches(folder: Path, total: int, rng: np.random.Generator, skip: int) -> Iterator[Samples]:
    """Endless random batches, from two shards at a time, in the order in which they are rendered; then over again."""
    number = skip
    while True:
        pair = []
        for offset in range(2):
            path = folder / f"shard_{(number + offset) % total:05d}.npz"
            while not path.exists():
                time.sleep(1)
            pair.append(Samples.load(path))
        number += 2
        order = rng.permutation(sum(len(s) for s in pair))
        ends = len(pair[0])
        for start in range(0, len(order) - BATCH + 1, BATCH):
            index = order[start:start + BATCH]
            a, b = pair[0].take(index[index < ends]), pair[1].take(index[index >= ends] - ends)
            yield Samples(*(np.concatenate([x, y]) for x, y in
                            zip(vars(a).values(), vars(b).values(), strict=True)))


def _store(path: Path, data: Path, split: str, procedural: int) -> MeshStore:
    if not path.exists():
        build_store(data, split, procedural, seed=0).save(path)
    return MeshStore.load(path)


def train(data: Path, run: Path, minutes: float, shards: int, procedural: int, workers: int) -> None:
    """Train for `minutes` of wall time in all (time before a resume counts) and leave `run`/checkpoint.pt.

    data: folder of meshes/manifest.jsonl; shards: files of 1600 samples in all; procedural: shapes of our own added.
    """
    run.mkdir(parents=True, exist_ok=True)
    train_path = run / "train_meshes.npz"
    sdf = _store(train_path, data, "train", procedural).sdf.astype(np.float32)
    check_store = _store(run / "dev_meshes.npz", data, "dev", 0)
    check, check_sdf = make_samples(check_store, 96, seed=7), check_store.sdf.astype(np.float32)
    context = get_context("spawn")
    renderers = [context.Process(target=_write_shards, args=(train_path, run, w, workers, shards), daemon=True)
                 for w in range(workers)]
    for process in renderers:
        process.start()

    torch.manual_seed(0)
    model = Student()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=True)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.02, fused=True)
    step, elapsed = 0, 0.0
    checkpoint = run / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step, elapsed = state["step"], state["elapsed"]

    def save() -> None:
        partial = checkpoint.with_suffix(".partial")
        torch.save({"model": model.state_dict(), "average": average.state_dict(),
                    "optimiser": optimiser.state_dict(), "step": step, "elapsed": elapsed}, partial)
        partial.rename(checkpoint)

    rng = np.random.default_rng(step)
    batches = _batches(run, shards, rng, skip=2 * (step * BATCH // (2 * SHARD)))
    losses: list[float] = []
    next_report = elapsed + 300
    while elapsed < 60 * minutes:
        started = time.monotonic()
        rate = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * elapsed / (60 * minutes))) * min(1, (step + 1) / WARM_UP)
        for group in optimiser.param_groups:
            group["lr"] = float(rate) + 1e-6  # NumPy scalars would need more than weights_only to load
        evidence, distance = make_batch(next(batches), sdf, rng)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(torch.from_numpy(evidence))
        loss = loss_of(logits.float(), torch.from_numpy(distance))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.update_parameters(model)
        losses.append(loss.item())
        step += 1
        elapsed += time.monotonic() - started
        if elapsed > next_report:
            next_report += 300
            save()
            print(json.dumps({"minutes": round(elapsed / 60, 1), "step": step,
                              "samples_per_s": round(step * BATCH / elapsed, 1),
                              "loss": round(float(np.mean(losses[-100:])), 4),
                              "rendered_dev_iou": round(mean_iou(average, check, check_sdf), 4)}), flush=True)
    save()
    print(json.dumps({"done": True, "step": step, "rendered_dev_iou": round(mean_iou(average, check, check_sdf), 4)}),
          flush=True)
    for process in renderers:
        process.terminate()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds meshes/manifest.jsonl")
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoint, samples and mesh store")
    parser.add_argument("--minutes", type=float, default=60, help="wall time of training in all")
    parser.add_argument("--shards", type=int, default=60, help="files of 1600 samples; then over again")
    parser.add_argument("--procedural", type=int, default=600, help="procedural shapes beside the train meshes")
    parser.add_argument("--workers", type=int, default=1, help="rendering processes")
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
