"""What can be chosen of a reconstruction: apart from the pipeline, which takes seconds to import."""
from __future__ import annotations

# Fields of PipelineConfig -> whole numbers from and to which options and the node's parameters take them.
RANGES = {"threads": (0, 256), "max_objects": (1, 256), "max_faces": (100, 200_000), "min_points": (10, 100_000)}
