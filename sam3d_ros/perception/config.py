"""Settings of a reconstruction; apart from the pipeline, whose import takes seconds."""
from __future__ import annotations

from dataclasses import dataclass

from ..runtime.engine import DEFAULT_MODEL

# Fields of PipelineConfig -> whole numbers from and to which options and the node's parameters take them.
RANGES = {"threads": (0, 256), "max_objects": (1, 256), "max_faces": (100, 200_000), "min_points": (10, 100_000)}


@dataclass(frozen=True)
class PipelineConfig:
    """What can be chosen.

    model: base or small, the models that are shipped, or the path of an ONNX student; engine: one of
    runtime.engine.ENGINE_CHOICES; precision: one of PRECISIONS there; threads: 0 = all cores; allow_engine_build: build
    an engine for this GPU if there is none yet, which takes minutes; build_only: it is built for later use, and has to
    be kept; max_objects: the largest masks of a frame are kept; max_faces: triangles per mesh; symmetry: complete
    hidden sides by planes of symmetry; min_points: depth readings inside a mask (without depth: pixels) that are too
    few below this
    """

    model: str = DEFAULT_MODEL
    engine: str = "auto"
    precision: str = "auto"
    threads: int = 0
    allow_engine_build: bool = True
    build_only: bool = False
    max_objects: int = 16
    max_faces: int = 5000
    symmetry: bool = True
    min_points: int = 50


DEFAULTS = PipelineConfig()
