"""Published figures to stand beside the measured ones: quoted, on other data, and so no more than an orientation."""
from __future__ import annotations

# what, figure, on which data and how
REFERENCES = (
    {"name": "OctMAE", "figure": "CD 6.40 mm", "on": "YCB-Video, RGB-D, metric, unaligned"},
    {"name": "OctMAE", "figure": "CD 6.97 mm", "on": "HOPE, RGB-D, metric, unaligned"},
    {"name": "ZeroGrasp", "figure": "CD 6.05 mm", "on": "GraspNet-1B, RGB-D, metric, unaligned"},
    {"name": "SAM 3D", "figure": "ADD-S@0.1 0.723", "on": "SA-3DAO"},
    {"name": "SAM 3D", "figure": "ADD-S@0.1 0.767", "on": "Aria Digital Twin"},
    {"name": "HY3D-2.0 + FoundationPose", "figure": "ADD-S@0.1 0.599", "on": "as SAM 3D reports it"},
    {"name": "Varley et al. 2017", "figure": "Jaccard 0.65", "on": "shape completion of unseen objects"},
)
