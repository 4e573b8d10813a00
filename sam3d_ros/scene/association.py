"""Which mask is which object, by where the known surfaces lie; the detector's own numbers are never used."""
from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from scipy.optimize import linear_sum_assignment

from .readings import Readings, Sighting
from .registration import are_near, near_share
from .track import Track

# Least share of the object's visible samples that lie in its mask, and of the mask's readings that lie near its
# surface.
_LEAST_VOTES, _LEAST_NEAR = 0.25, 0.35
NEAR = 0.015              # metres from a surface at which readings of its mask lie
# A mask is a piece of an object, not a new one, if that share of its readings lies on the object.
_FRAGMENT, _ON_SURFACE = 0.6, 0.006
# A track without a mask is one of the same thing as that which has it if the depth confirms this share of its visible
# samples within that mask, and of the readings that lie on it, this share lies on the other one, too.
_LEAST_SAME, _ON_BOTH = 0.35, 0.8


def shows(track: Track, points: np.ndarray, camera_from_scene: np.ndarray) -> bool:
    """Whether enough of a mask's readings, (N, 3) metres, camera frame, lie near a track's surface.

    camera_from_scene: (4, 4)
    """
    return near_share(track.shape, points, camera_from_scene @ track.belief.scene_from_object, NEAR) >= _LEAST_NEAR


def is_piece(tracks: Iterable[Track], points: np.ndarray, camera_from_scene: np.ndarray) -> bool:
    """Whether a mask with these readings, (N, 3) metres, camera frame, lies on one of the tracks."""
    return len(points) > 0 and any(
        near_share(track.shape, points, camera_from_scene @ track.belief.scene_from_object, _ON_SURFACE) > _FRAGMENT
        for track in tracks)


def matched(tracks: Mapping[str, Track], sightings: Mapping[str, Sighting], readings: Readings,
            camera_from_scene: np.ndarray, within: float = NEAR) -> dict[str, int]:
    """Id -> index of the instance that shows it, for as many of the sighted tracks and as well as possible.

    camera_from_scene: (4, 4); within: metres from the surface
    """
    if not sightings or not readings.points:
        return {}
    gain = np.zeros((len(sightings), len(readings.points)))
    for row, (identity, sighting) in enumerate(sightings.items()):
        track, votes = tracks[identity], sighting.shares
        pose = camera_from_scene @ track.belief.scene_from_object
        for column in np.flatnonzero(votes >= _LEAST_VOTES):
            near = near_share(track.shape, readings.points[column], pose, within)
            gain[row, column] = votes[column] * near if near >= _LEAST_NEAR else 0.0
    identities = [*sightings]
    return {identities[row]: int(column) for row, column in zip(*linear_sum_assignment(-gain), strict=True)
            if gain[row, column] > 0}


def shared(tracks: Mapping[str, Track], sightings: Mapping[str, Sighting], pairs: Mapping[str, int],
           readings: Readings, camera_from_scene: np.ndarray) -> set[int]:
    """Indices of the masks that show more than one known object.

    Beside the object that the mask was matched with, or else that which shows the most in it, another one without a
    mask of its own shows there, in readings that do not lie on the first: no second track of the same thing.
    """
    found = set()
    for index, points in enumerate(readings.points):
        shown = [tracks[identity] for identity, sighting in sightings.items()
                 if sighting.shares[index] >= _LEAST_VOTES and pairs.get(identity, index) == index]
        if len(shown) < 2:
            continue
        near = np.stack([are_near(track.shape, points, camera_from_scene @ track.belief.scene_from_object, _ON_SURFACE)
                         for track in shown])
        own = [track.id in pairs for track in shown]
        main = near[own.index(True) if any(own) else int(near.sum(axis=1).argmax())]
        if ((near & ~main).sum(axis=1) > near.sum(axis=1) / 2).any():
            found.add(index)
    return found


def without_doubles(tracks: Mapping[str, Track], sightings: Mapping[str, Sighting], pairs: Mapping[str, int],
                    readings: Readings, camera_from_scene: np.ndarray) -> tuple[dict[str, int], set[str]]:
    """The pairs, in which of tracks of the same thing the oldest that explains the mask has it, and the ids of the
    others.

    A detector that takes one object for two makes two tracks; later, they would take turns in the one mask.
    tracks: in the order in which they were made
    """
    chosen, doubles = {}, set()
    for identity, index in pairs.items():
        without = {other for other, sighting in sightings.items()
                   if other not in pairs and 0 < _LEAST_SAME * sighting.facing <= sighting.votes[index]}
        if not without:             # as mostly: there is nothing to measure
            chosen[identity] = index
            continue
        near = {known: are_near(tracks[known].shape, readings.points[index],
                                camera_from_scene @ tracks[known].belief.scene_from_object, _ON_SURFACE)
                for known in (identity, *without)}
        same = {other for other in without
                if (near[other] & near[identity]).sum() >= _ON_BOTH * max(near[other].sum(), 1)}
        oldest = next(known for known in tracks
                      if known == identity or known in same and near[known].mean() > _FRAGMENT)
        chosen[oldest] = index
        doubles |= {identity, *same} - {oldest}
    return chosen, doubles
