"""Training of a student, resumable at any moment: `sam3d train`.

Scenes are rendered by worker processes while the network trains.  Lightning Fabric carries it to whatever there is: the
CPU, in bfloat16 where its processor has that, or one or many GPUs.
"""
from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

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
from ..terminal import UserError, in_range
from . import checkpoint
from .initialise import check_start, initialise_from_onnx
from .losses import student_losses
from .meshes import MeshStore, load_or_build
from .muon import Muon
from .samples import Curriculum, Stream, fixed_samples
from .workers import interrupt_left_to_parent

CONFIGS = Path(__file__).parent / "configs"
REPORT_SECONDS = 300
_CHECKED = 74            # samples of the dev split by which progress is watched
_LARGEST_GRADIENT = 5.0  # norm over all weights, beyond which gradients are scaled down
_CALIBRATED = 64         # samples for the statistics of a network that starts from an exported one
# Kind, least and largest value of the numbers of a config file.
_NUMBERS = {"width": (int, 1, 1024), "blocks": (int, 0, 16), "batch": (int, 1, 4096), "learning_rate": (float, 1e-9, 1),
            "weight_decay": (float, 0, 1), "warm_up": (int, 1, 1_000_000), "average": (float, 0, 0.999999),
            "reuse": (int, 1, 100), "procedural": (int, 0, 1_000_000)}


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
    """A config by the name of one in configs/ ("base", "small") or by its path.

    Raises OSError, and UserError for a file that is no config or has a key, a kind or a value that there is not.
    """
    path = CONFIGS / f"{name}.yaml"
    path = path if path.exists() else Path(name)
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {error}") from None
    try:
        keys = _checked_keys(content, {*_NUMBERS, "stages"})
        numbers = {name: _number(keys, name, *allowed) for name, allowed in _NUMBERS.items()}
        return TrainingConfig(**numbers, stages=_stages(keys["stages"]))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _stages(content: Any) -> list[dict]:
    """The stages of a config file, in order of their ends, the last at 1.  Raises ValueError."""
    if not isinstance(content, list) or not content:
        raise ValueError("stages: a list of at least one stage is wanted")
    shares = {share.name for share in fields(Curriculum)}
    stages = [{name: _number(stage, name, float, 0, 1) for name in _checked_keys(stage, {"until"}, shares)}
              for stage in content]
    ends = [stage["until"] for stage in stages]
    if ends != sorted(set(ends)) or ends[-1] != 1:
        raise ValueError(f"stages: `until` must rise from stage to stage, to 1; it is {', '.join(map(str, ends))}")
    return stages


def _checked_keys(content: Any, required: set[str], optional: set[str] = frozenset()) -> Mapping[str, Any]:
    """`content`, with all keys of `required` and no other ones than of `optional`.  Raises ValueError."""
    if not isinstance(content, Mapping):
        raise ValueError(f"keys and values are wanted, not {content!r}")
    for said, names in (("unknown", content.keys() - required - optional), ("missing", required - content.keys())):
        if names:
            raise ValueError(f"{said}: {', '.join(sorted(map(str, names)))}")
    return content


def _number(content: Mapping[str, Any], name: str, kind: type[int] | type[float], low: float,
            high: float = math.inf) -> float:
    """The number at `name`; YAML takes 1e-3, without a point, for text.  Raises ValueError."""
    try:
        return in_range(kind, low, high)(str(content[name]))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{name}: {error}") from None


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


class _Learner:
    """A network in training, with its optimisers, the moving average of its weights, and how far it is.

    step, elapsed: steps and seconds so far; state: of the checkpoint to go on from, None: from the beginning
    """

    def __init__(self, network: Student, config: TrainingConfig, fabric: Fabric, state: dict[str, Any] | None):
        self.step, self.elapsed = (state["step"], state["elapsed"]) if state else (0, 0.0)
        self._network, self._config, self._fabric = network, config, fabric
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.average), use_buffers=True)
        if state:
            network.load_state_dict(state["model"])
            average.load_state_dict(state["average"])
        for module in network.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)
        optimisers = _optimisers(network, config)
        self._model, *self._optimisers = fabric.setup(network, *optimisers)
        if state:       # now that the weights are where they stay: what an optimiser holds goes to its weights' device
            for optimiser, held in zip(optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(held)
        self.average = average.to(fabric.device)
        # Compiled, the losses take a fifth of the time, what leads to the first convolution two fifths, and the rest
        # five sixths; the first step with each number of views takes half a minute.
        self._losses = student_losses
        if shutil.which("g++"):
            self._losses = torch.compile(student_losses)
            network.lift = torch.compile(network.lift, dynamic=False)
            network.complete = torch.compile(network.complete, dynamic=False)

    def learn(self, batches: Iterator[dict[str, torch.Tensor]], share: float) -> dict[str, float]:
        """One step, at a share, 0 to 1, of the training time, from the next batch; its losses by name.

        Losses and time are means over all processes: each has the same, and so all end with the same step.
        """
        started = time.monotonic()
        self._set_rate(share)
        batch = {name: tensor.to(self._fabric.device, non_blocking=True) for name, tensor in next(batches).items()}
        outputs = self._model(batch["crops"], batch["views"], batch["support"])
        losses = self._losses(tuple(o.float() for o in outputs), batch)
        self._fabric.backward(sum(losses.values()))
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), _LARGEST_GRADIENT)
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.average.update_parameters(self._network)
        *found, seconds = self._fabric.all_reduce(torch.stack([
            *(loss.detach() for loss in losses.values()),
            torch.tensor(time.monotonic() - started, device=self._fabric.device)])).tolist()
        self.step += 1
        self.elapsed += seconds
        return dict(zip(losses, found, strict=True))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"model": self._model.module.state_dict(), "average": self.average.state_dict(),
                "config": asdict(self._config), "step": self.step, "elapsed": self.elapsed,
                "optimisers": [optimiser.state_dict() for optimiser in self._optimisers]}

    def _set_rate(self, share: float) -> None:
        warm = min(1, (self.step + 1) / self._config.warm_up)
        rate = self._config.learning_rate * 0.5 * (1 + np.cos(np.pi * share)) * warm
        for group in (group for optimiser in self._optimisers for group in optimiser.param_groups):
            group["lr"] = float(rate) + 1e-6     # NumPy scalars would need more than weights_only to load


class _Progress:
    """Checkpoint, and losses since the one before in log.jsonl and TensorBoard; everything that survives an
    interruption.

    elapsed: seconds of training at the beginning
    """

    def __init__(self, run: Path, fabric: Fabric, elapsed: float):
        self._path = run / "checkpoint.pt"
        self._log = run / "log.jsonl"
        self._fabric = fabric
        if fabric.is_global_zero and self._log.exists():
            self._log.write_text(checkpoint.whole_lines(self._log))
        self._board = SummaryWriter(str(run / "tensorboard")) if fabric.is_global_zero else None
        self._sums: dict[str, float] = {}
        self._count, self._reported = 0, elapsed

    def add(self, losses: Mapping[str, float]) -> None:
        """The losses of a step."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + loss
        self._count += 1

    def is_due(self, elapsed: float) -> bool:
        """Whether the last report is REPORT_SECONDS ago."""
        return elapsed > self._reported + REPORT_SECONDS

    def report(self, learner: _Learner, batch: int, check: dict[str, np.ndarray]) -> None:
        """Write the checkpoint, and figures of the steps since the last report; check: samples of the dev split."""
        if self._fabric.is_global_zero:
            checkpoint.save(self._path, learner.state())
        every = batch * self._fabric.world_size
        row = {"minutes": round(learner.elapsed / 60, 1), "step": learner.step, "samples": learner.step * every,
               "samples_per_s": round(self._count * every / (learner.elapsed - self._reported), 1),
               "loss": round(sum(self._sums.values()) / self._count, 4)}
        row |= {name: round(value / self._count, 4) for name, value in self._sums.items()}
        self._write(row | {"dev_iou": round(mean_iou(learner.average, check, self._fabric, batch), 4)})
        self._sums, self._count, self._reported = {}, 0, learner.elapsed

    def _write(self, row: dict[str, float]) -> None:
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
    Raises UserError for data, a checkpoint or an exported student that cannot be used, before anything takes long;
    OSError.
    """
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = Student(StudentConfig(config.width, config.blocks))
    network.backbone.load_imagenet()
    state = _held(run / "checkpoint.pt", config)
    if start_from and not state:
        check_start(start_from, config.width)
    mixed = torch.cuda.is_available() or has_bfloat16()
    fabric = Fabric(accelerator="auto", devices=devices, precision="bf16-mixed" if mixed else "32-true")
    fabric.launch()
    store, dev_store = _stores(fabric, run, data, config.procedural, workers)
    check = fixed_samples(dev_store, _CHECKED, 7, Curriculum(no_depth=0))
    if start_from and not state:
        initialise_from_onnx(network, start_from, fixed_samples(store, _CALIBRATED, 1, Curriculum(no_depth=0)))
    learner = _Learner(network, config, fabric, state)
    progress = _Progress(run, fabric, learner.elapsed)
    end = 60 * minutes
    if state and learner.elapsed >= end:
        tqdm.write(f"{run} has been trained for {learner.elapsed / 60:.1f} minutes already; --minutes counts them")
    stage, batches = -1, None
    with tqdm(total=round(end), initial=round(learner.elapsed), unit="s", disable=not fabric.is_global_zero) as bar:
        while learner.elapsed < end:
            share = learner.elapsed / end
            if config.stage(share) != stage:
                stage = config.stage(share)
                seed = 1000 * (learner.step + 1) + fabric.global_rank
                stream = Stream(run / "train_meshes", config.batch, config.reuse, config.curriculum(stage), seed)
                batches = _batches(stream, workers)
            progress.add(learner.learn(batches, share))
            bar.update(round(learner.elapsed) - bar.n)
            if progress.is_due(learner.elapsed) or learner.elapsed >= end:
                progress.report(learner, config.batch, check)


def _stores(fabric: Fabric, run: Path, data: Path, procedural: int, workers: int) -> tuple[MeshStore, MeshStore]:
    """Meshes of the train and of the dev split, which the first process builds, with the workers of all."""
    def both(builders: int) -> tuple[MeshStore, MeshStore]:
        return (load_or_build(run / "train_meshes", data, "train", procedural, builders),
                load_or_build(run / "dev_meshes", data, "dev", 0, builders))

    if fabric.is_global_zero:
        both(workers * fabric.world_size)       # the others wait for no more than half an hour
    fabric.barrier()
    return both(workers)


def _batches(stream: Stream, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of a stream, made by so many processes, or, with 0, when they are asked for."""
    several = dict(prefetch_factor=4, multiprocessing_context="spawn") if workers else {}
    with interrupt_left_to_parent():
        return iter(DataLoader(stream, batch_size=None, num_workers=workers, **several))


def _held(path: Path, config: TrainingConfig) -> dict[str, Any] | None:
    """The checkpoint to go on from, None if there is none yet.  Raises UserError if it is of another network."""
    if not path.exists():
        return None
    state = checkpoint.load(path)
    sizes, wanted = ([f"{name} {of[name]}" for name in ("width", "blocks")] for of in (state["config"], asdict(config)))
    if sizes != wanted:
        raise UserError(f"{path} is of a network of {', '.join(sizes)}, not {', '.join(wanted)}: choose another --run")
    return state
