"""Training of a student, resumable at any moment: `sam3d train`.

Scenes are rendered by worker processes while the network trains.  Lightning Fabric carries it to whatever there is: the
CPU, in bfloat16 where its processor has that, or one or many GPUs.
"""
from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from lightning_fabric import Fabric
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..models.student import Student, StudentConfig
from ..runtime.processor import has_bfloat16
from .initialise import initialise_from_onnx
from .losses import student_losses
from .meshes import load_or_build
from .muon import Muon
from .samples import Curriculum, Stream, fixed_samples

CONFIGS = Path(__file__).parent / "configs"
REPORT_SECONDS = 300
_CHECKED = 74            # samples of the dev split by which progress is watched
_LARGEST_GRADIENT = 5.0  # norm over all weights, beyond which gradients are scaled down
_CALIBRATED = 64         # samples for the statistics of a network that starts from an exported one


@dataclass(frozen=True)
class TrainingConfig:
    """What a config file says; see configs/base.yaml."""

    width: int
    blocks: int
    batch: int
    learning_rate: float
    weight_decay: float
    warm_up: int
    average: float
    reuse: int
    procedural: int
    stages: list[dict] = field(default_factory=list)

    def stage(self, share: float) -> int:
        """Index of the stage at a share, 0 to 1, of the training time."""
        return next((i for i, stage in enumerate(self.stages) if share < stage["until"]), len(self.stages) - 1)

    def curriculum(self, stage: int) -> Curriculum:
        """What the samples of a stage look like."""
        return Curriculum(**{k: v for k, v in self.stages[stage].items() if k != "until"})


def read_config(name: str) -> TrainingConfig:
    """A config by the name of one in configs/ ("base", "small") or by its path."""
    path = CONFIGS / f"{name}.yaml"
    return TrainingConfig(**yaml.safe_load((path if path.exists() else Path(name)).read_text()))


@torch.no_grad()
def mean_iou(model: torch.nn.Module, samples: dict[str, np.ndarray], fabric: Fabric, batch: int) -> float:
    """Mean volumetric IoU of the predicted and the true inside over all samples."""
    model.eval()
    ious = []
    for start in range(0, len(samples["crops"]), batch):
        part = {name: torch.from_numpy(array[start:start + batch]).to(fabric.device) for name, array in samples.items()}
        with fabric.autocast():
            predicted = model(part["crops"], part["views"], part["support"])[0] < 0
        true = part["distance"] < 0
        axes = (1, 2, 3, 4)
        ious.append((predicted & true).sum(axes) / (predicted | true).sum(axes).clamp_min(1))
    model.train()
    return float(torch.cat(ious).mean())


def _optimisers(network: Student, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions between the first evidence and the answers, AdamW for all else that learns."""
    filters = [module.weight for name, module in network.named_modules()
               if isinstance(module, torch.nn.Conv3d) and name not in ("head", "look")]
    rest = [p for p in network.parameters() if p.requires_grad and not any(p is weight for weight in filters)]
    return [Muon(filters, config.learning_rate, config.weight_decay),
            torch.optim.AdamW(rest, config.learning_rate, weight_decay=config.weight_decay, fused=True)]


class _Progress:
    """Log lines in log.jsonl and TensorBoard, and the checkpoint; everything that survives an interruption."""

    def __init__(self, run: Path, fabric: Fabric):
        self.path = run / "checkpoint.pt"
        self._fabric = fabric
        self._log = run / "log.jsonl"
        self._board = SummaryWriter(str(run / "tensorboard")) if fabric.is_global_zero else None

    def save(self, model, average, optimisers, step: int, elapsed: float, config: TrainingConfig) -> None:
        if self._fabric.is_global_zero:
            partial = self.path.with_suffix(".partial")
            torch.save({"model": model.module.state_dict(), "average": average.state_dict(), "config": asdict(config),
                        "optimisers": [optimiser.state_dict() for optimiser in optimisers], "step": step,
                        "elapsed": elapsed}, partial)
            partial.rename(self.path)

    def report(self, row: dict) -> None:
        if self._board:
            tqdm.write(json.dumps(row))
            with self._log.open("a") as log:
                log.write(json.dumps(row) + "\n")
            for name, value in row.items():
                self._board.add_scalar(name, value, row["step"])
            self._board.flush()


def train(config: TrainingConfig, data: Path, run: Path, minutes: float, workers: int, start_from: Path | None = None,
          devices: int = 1) -> None:
    """Train for `minutes` of wall time in all (time before a resume counts) and leave `run`/checkpoint.pt.

    data: folder of meshes/manifest.jsonl; workers: rendering processes per device; start_from: an exported student
    whose weights are taken over as far as shapes agree.
    """
    run.mkdir(parents=True, exist_ok=True)
    mixed = torch.cuda.is_available() or has_bfloat16()
    fabric = Fabric(accelerator="auto", devices=devices, precision="bf16-mixed" if mixed else "32-true")
    fabric.launch()
    if fabric.is_global_zero:
        load_or_build(run / "train_meshes", data, "train", config.procedural, workers)
        load_or_build(run / "dev_meshes", data, "dev", 0, workers)
    fabric.barrier()
    store = load_or_build(run / "train_meshes", data, "train", config.procedural)
    check = fixed_samples(load_or_build(run / "dev_meshes", data, "dev", 0), _CHECKED, 7, Curriculum(no_depth=0))

    torch.manual_seed(0)
    network = Student(StudentConfig(config.width, config.blocks))
    network.backbone.load_imagenet()
    progress = _Progress(run, fabric)
    step, elapsed = 0, 0.0
    state = torch.load(progress.path, weights_only=True, map_location="cpu") if progress.path.exists() else None
    if state is None and start_from:
        samples = fixed_samples(store, _CALIBRATED, 1, Curriculum(no_depth=0))
        initialise_from_onnx(network, start_from, samples)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.average), use_buffers=True)
    if state:
        network.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        step, elapsed = state["step"], state["elapsed"]
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
    optimisers = _optimisers(network, config)
    if state:
        for optimiser, held in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(held)
    model, *optimisers = fabric.setup(network, *optimisers)
    average = average.to(fabric.device)
    # Compiled, the losses take a fifth of the time, and what leads to the first convolution two fifths; the first step
    # with each number of views takes half a minute.
    measure = student_losses
    if shutil.which("g++"):
        measure = torch.compile(student_losses)
        network.lift = torch.compile(network.lift, dynamic=False)

    stage, batches = -1, None
    sums: dict[str, float] = {}
    count, next_report = 0, elapsed + REPORT_SECONDS
    bar = tqdm(total=round(60 * minutes), initial=round(elapsed), unit="s", disable=not fabric.is_global_zero)
    while elapsed < 60 * minutes:
        share = elapsed / (60 * minutes)
        if config.stage(share) != stage:
            stage = config.stage(share)
            seed = 1000 * (step + 1) + fabric.global_rank
            stream = Stream(run / "train_meshes", config.batch, config.reuse, config.curriculum(stage), seed)
            batches = iter(DataLoader(stream, batch_size=None, num_workers=workers,
                                      **(dict(prefetch_factor=4, multiprocessing_context="spawn") if workers else {})))
        started = time.monotonic()
        rate = config.learning_rate * 0.5 * (1 + np.cos(np.pi * share)) * min(1, (step + 1) / config.warm_up)
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = float(rate) + 1e-6     # NumPy scalars would need more than weights_only to load
        batch = {name: array.to(fabric.device, non_blocking=True) for name, array in next(batches).items()}
        outputs = model(batch["crops"], batch["views"], batch["support"])
        losses = measure(tuple(o.float() for o in outputs), batch)
        fabric.backward(sum(losses.values()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        average.update_parameters(network)
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.item()
        count += 1
        step += 1
        seconds = time.monotonic() - started
        elapsed += seconds
        bar.update(round(elapsed) - bar.n)
        if elapsed > next_report or elapsed >= 60 * minutes:
            next_report = elapsed + REPORT_SECONDS
            progress.save(model, average, optimisers, step, elapsed, config)
            row = {"minutes": round(elapsed / 60, 1), "step": step, "samples": step * config.batch * fabric.world_size,
                   "samples_per_s": round(count * config.batch * fabric.world_size / max(1e-9, REPORT_SECONDS), 1),
                   "loss": round(sum(sums.values()) / count, 4)}
            row |= {name: round(value / count, 4) for name, value in sums.items()}
            progress.report(row | {"dev_iou": round(mean_iou(average, check, fabric, config.batch), 4)})
            sums, count = {}, 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sam3d train`."""
    parser.add_argument("config", help="base, small, or a config file")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR",
                        help="folder that holds meshes/manifest.jsonl")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR",
                        help="folder of checkpoint, log and mesh store")
    parser.add_argument("--minutes", type=float, default=60, help="wall time of training in all (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="rendering processes per device (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=1, help="GPUs, where there are some (default: %(default)s)")
    parser.add_argument("--start-from", type=Path, metavar="ONNX", help="begin with the weights of an exported student")


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say."""
    train(read_config(args.config), args.data, args.run, args.minutes, args.workers, args.start_from, args.devices)
    return 0
