"""Training of students, resumable at any moment: `sam3d train`.

Scenes are rendered by worker processes while the networks train.  Lightning Fabric carries them to whatever there is:
the CPU, in bfloat16 where its processor has that, or one or many GPUs.  Several students can share what is rendered.
"""
from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
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
from .targets import Targets, with_targets
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
_OF_BATCHES = ("batch", "reuse", "procedural", "stages")


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


def read_configs(names: Sequence[str]) -> dict[str, TrainingConfig]:
    """Configs of students that learn from the same batches, by their names: see `read_config`.

    Raises what that does, and UserError for two of one name or that ask for other batches.
    """
    configs = {Path(name).stem: read_config(name) for name in names}
    if len(configs) < len(names):
        raise UserError(f"two configs of one name: {', '.join(names)}")
    (first, wanted), *others = configs.items()
    for name, config in others:
        for key in _OF_BATCHES:
            if getattr(config, key) != getattr(wanted, key):
                raise UserError(f"students that learn from the same batches need the same `{key}`: {first} has "
                                f"{getattr(wanted, key)}, {name} {getattr(config, key)}")
    return configs


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
def mean_iou(model: torch.nn.Module, samples: dict[str, torch.Tensor], fabric: Fabric, batch: int) -> float:
    """Mean volumetric IoU of the predicted and the true inside over all samples."""
    model.eval()
    ious = []
    for start in range(0, len(samples["crops"]), batch):
        part = {name: tensor[start:start + batch] for name, tensor in samples.items()}
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
    """A network in training, with its optimisers, the moving average of its weights, and its checkpoint and log.

    checkpoint: its path; folder: of checkpoint.pt, log.jsonl and tensorboard; state: of the checkpoint to go on from,
    None: from the beginning
    """

    def __init__(self, network: Student, config: TrainingConfig, fabric: Fabric, folder: Path,
                 state: dict[str, Any] | None):
        self.checkpoint = folder / "checkpoint.pt"
        self._step = state["step"] if state else 0
        self._network, self._config, self._fabric = network, config, fabric
        for module in network.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)
        average = AveragedModel(network)    # in the same memory format, so that all weights are averaged at once
        if state:
            network.load_state_dict(state["model"])
            average.load_state_dict(state["average"])
        optimisers = _optimisers(network, config)
        self._model, *self._optimisers = fabric.setup(network, *optimisers)
        if state:       # now that the weights are where they stay: what an optimiser holds goes to its weights' device
            for optimiser, held in zip(optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(held)
        self._average = average.to(fabric.device)
        self._losses = student_losses
        if _compiles(fabric):
            self._losses = torch.compile(student_losses)
            network.lift = torch.compile(network.lift, dynamic=False)
        self._progress = _Progress(folder, fabric, state["elapsed"] if state else 0.0)

    def learn(self, batch: dict[str, torch.Tensor], share: float) -> None:
        """One step, at a share, 0 to 1, of the training time, from a batch as losses.student_losses wants it."""
        self._set_rate(share)
        outputs = self._model(batch["crops"], batch["views"], batch["support"])
        losses = self._losses(tuple(o.float() for o in outputs), batch)
        self._fabric.backward(sum(losses.values()))
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), _LARGEST_GRADIENT)
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self._follow()
        self._step += 1
        self._progress.add({name: loss.detach() for name, loss in losses.items()})

    def figures(self, elapsed: float, check: dict[str, torch.Tensor]) -> dict[str, float]:
        """What the log is to say of the steps since the last report; check: samples of the dev split, with targets."""
        iou = mean_iou(self._average, check, self._fabric, self._config.batch)
        return self._progress.figures(self._step, elapsed, self._config.batch) | {"dev_iou": round(iou, 4)}

    def log(self, row: dict[str, float]) -> None:
        """Write what `figures` gave."""
        self._progress.write(row)

    def state(self, elapsed: float) -> dict[str, Any]:
        """What the checkpoint is to hold."""
        return {"model": self._network.state_dict(), "average": self._average.state_dict(),
                "config": asdict(self._config), "step": self._step, "elapsed": elapsed,
                "optimisers": [optimiser.state_dict() for optimiser in self._optimisers]}

    def _follow(self) -> None:
        """Move the average towards the weights; what AveragedModel has for this waits for the GPU at every step."""
        average, present = ([tensor for tensor in chain(module.parameters(), module.buffers())
                             if tensor.is_floating_point()] for module in (self._average.module, self._network))
        decay = self._config.average if self._step else 0.0
        get_ema_multi_avg_fn(decay)(average, present, None)

    def _set_rate(self, share: float) -> None:
        warm = min(1, (self._step + 1) / self._config.warm_up)
        rate = self._config.learning_rate * 0.5 * (1 + np.cos(np.pi * share)) * warm
        for group in (group for optimiser in self._optimisers for group in optimiser.param_groups):
            group["lr"] = float(rate) + 1e-6     # NumPy scalars would need more than weights_only to load


def _compiles(fabric: Fabric) -> bool:
    """Whether what is computed often is compiled.

    On a CPU, with its compiler, the losses then take a fifth of the time, and what leads to the first convolution two
    fifths; the convolutions and what follows them gain nothing.  The first step with each number of views takes half a
    minute.  On a GPU nothing is compiled: it was never tried there.
    """
    return fabric.device.type == "cpu" and shutil.which("g++") is not None


class _Progress:
    """Losses since the last report, in log.jsonl and TensorBoard.

    elapsed: seconds of training at the beginning
    """

    def __init__(self, folder: Path, fabric: Fabric, elapsed: float):
        self._log = folder / "log.jsonl"
        self._fabric = fabric
        if fabric.is_global_zero and self._log.exists():
            self._log.write_text(checkpoint.whole_lines(self._log))
        self._board = SummaryWriter(str(folder / "tensorboard")) if fabric.is_global_zero else None
        self._sums: dict[str, torch.Tensor] = {}
        self._count, self._reported = 0, elapsed

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        """The losses of a step, which stay where they were computed: to read them is to wait for a GPU."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0) + loss
        self._count += 1

    def figures(self, step: int, elapsed: float, batch: int) -> dict[str, float]:
        """Of the steps since the last report: means over all processes."""
        means = self._fabric.all_reduce(torch.stack(list(self._sums.values())) / self._count).tolist()
        every = batch * self._fabric.world_size
        rate = self._count * every / (elapsed - self._reported)
        row = {"minutes": round(elapsed / 60, 1), "step": step, "samples": step * every,
               "samples_per_s": round(rate, 1), "loss": round(sum(means), 4)}
        row |= {name: round(mean, 4) for name, mean in zip(self._sums, means, strict=True)}
        self._sums, self._count, self._reported = {}, 0, elapsed
        return row

    def write(self, row: dict[str, float]) -> None:
        """Append a row, in the first process."""
        if self._board:
            tqdm.write(json.dumps(row))
            with self._log.open("a") as log:
                log.write(json.dumps(row) + "\n")
            for name, value in row.items():
                self._board.add_scalar(name, value, row["step"])
            self._board.flush()


def train(configs: Mapping[str, TrainingConfig], data: Path, run: Path, minutes: float, workers: int,
          start_from: Sequence[Path] = (), devices: int = 1) -> None:
    """Train students, by name, for `minutes` of wall time in all (time before a resume counts), all with the same
    batches; leaves `run`/<name>/checkpoint.pt.

    configs: as `read_configs` gives them; data: folder of meshes/manifest.jsonl; workers: rendering processes per
    device; start_from: an exported student for each, whose weights are taken over as far as shapes agree, or none.
    Raises UserError for data, a checkpoint or an exported student that cannot be used, before anything takes long;
    OSError.
    """
    for name in configs:
        (run / name).mkdir(parents=True, exist_ok=True)
    states = [_held(run / name / "checkpoint.pt", config) for name, config in configs.items()]
    elapsed = _common_time(states, run)
    starts = [None] * len(configs) if elapsed else list(start_from or [None] * len(configs))
    for start, config in zip(starts, configs.values(), strict=True):
        if start:
            check_start(start, config.width)
    mixed = torch.cuda.is_available() or has_bfloat16()
    fabric = Fabric(accelerator="auto", devices=devices, precision="bf16-mixed" if mixed else "32-true")
    fabric.launch()
    config = next(iter(configs.values()))
    store, dev_store = _stores(fabric, run, data, config.procedural, workers)
    check = _with_targets(fixed_samples(dev_store, _CHECKED, 7, Curriculum(no_depth=0)), Targets(dev_store), fabric)
    first = fixed_samples(store, _CALIBRATED, 1, Curriculum(no_depth=0)) if any(starts) else {}
    learners = [_Learner(_student(each, start, first), each, fabric, run / name, state)
                for (name, each), start, state in zip(configs.items(), starts, states, strict=True)]
    targets = Targets(store).to(fabric.device)
    if _compiles(fabric):
        targets = torch.compile(targets)
    end, reported = 60 * minutes, elapsed
    if elapsed and start_from:
        tqdm.write(f"{run} goes on from its checkpoints; --start-from is for the beginning alone")
    if elapsed >= end:
        tqdm.write(f"{run} has been trained for {elapsed / 60:.1f} minutes already; --minutes counts them")
    stage, batches = -1, None
    with tqdm(total=round(end), initial=round(elapsed), unit="s", disable=not fabric.is_global_zero) as bar:
        while elapsed < end:
            share = elapsed / end
            if config.stage(share) != stage:
                stage = config.stage(share)
                # The time is another with each resume, and the same in all processes.
                seed = [round(1000 * elapsed), fabric.global_rank]
                stream = Stream(run / "train_meshes", config.batch, config.reuse, config.curriculum(stage), seed)
                batches = _batches(stream, workers)
            started = time.monotonic()
            batch = _moved(next(batches), fabric)
            batch = with_targets(batch, targets)
            for learner in learners:
                learner.learn(batch, share)
            elapsed += _agreed(time.monotonic() - started, fabric)
            bar.update(round(elapsed) - bar.n)
            if elapsed > reported + REPORT_SECONDS or elapsed >= end:
                reported = elapsed
                _report(learners, elapsed, check, fabric)


def _report(learners: Sequence[_Learner], elapsed: float, check: dict[str, torch.Tensor], fabric: Fabric) -> None:
    """Write checkpoints and logs; check: samples of the dev split, with targets.

    What takes long comes first, and all checkpoints appear together: an interruption leaves none ahead of another.
    """
    rows = [learner.figures(elapsed, check) for learner in learners]
    if fabric.is_global_zero:
        checkpoint.save({learner.checkpoint: learner.state(elapsed) for learner in learners})
    for learner, row in zip(learners, rows, strict=True):
        learner.log(row)


def _student(config: TrainingConfig, start: Path | None, samples: dict[str, np.ndarray]) -> Student:
    """A new student, with ImageNet's image features, or with the weights of the exported one `start`, whose statistics
    are then taken on `samples`."""
    torch.manual_seed(0)
    network = Student(StudentConfig(config.width, config.blocks))
    network.backbone.load_imagenet()
    if start:
        initialise_from_onnx(network, start, samples)
    return network


def _common_time(states: Sequence[dict[str, Any] | None], run: Path) -> float:
    """Seconds for which all students have been trained.  Raises UserError if they are not the same."""
    times = {state["elapsed"] if state else 0.0 for state in states}
    if len(times) > 1:
        raise UserError(f"the students in {run} have not been trained together: give another --run, or one at a time")
    return times.pop()


def _agreed(seconds: float, fabric: Fabric) -> float:
    """The mean of all processes' seconds, by which all end with the same step."""
    if fabric.world_size == 1:
        return seconds                  # nothing that a GPU would have to answer
    return float(fabric.all_reduce(torch.tensor(seconds, device=fabric.device)))


def _moved(batch: Mapping[str, torch.Tensor], fabric: Fabric) -> dict[str, torch.Tensor]:
    return {name: tensor.to(fabric.device, non_blocking=True) for name, tensor in batch.items()}


def _with_targets(samples: Mapping[str, np.ndarray], targets: Targets, fabric: Fabric) -> dict[str, torch.Tensor]:
    """Samples, as samples.fixed_samples gives them, with their targets, where the network is."""
    return _moved(with_targets({name: torch.from_numpy(array) for name, array in samples.items()}, targets), fabric)


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
        return iter(DataLoader(stream, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available(),
                               **several))


def _held(path: Path, config: TrainingConfig) -> dict[str, Any] | None:
    """The checkpoint to go on from, None if there is none yet.  Raises UserError if it is of another network."""
    if not path.exists():
        return None
    state = checkpoint.load(path)
    sizes, wanted = ([f"{name} {of[name]}" for name in ("width", "blocks")] for of in (state["config"], asdict(config)))
    if sizes != wanted:
        raise UserError(f"{path} is of a network of {', '.join(sizes)}, not {', '.join(wanted)}: choose another --run")
    return state
