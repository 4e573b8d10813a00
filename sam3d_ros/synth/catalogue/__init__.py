"""How each kind of household object is made.

A builder draws plausible proportions from a random generator and returns a closed mesh (metres, +Z up, standing on its
usual base) and its texture.
"""
from __future__ import annotations

import trimesh

from ..textures import Texture

Built = tuple[trimesh.Trimesh, Texture]
