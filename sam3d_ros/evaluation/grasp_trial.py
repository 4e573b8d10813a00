"""One grasp in MuJoCo: a free-flying parallel hand goes in, closes, lifts, and holds an object or does not.

World frame of synth/clutter.py; the hand's frame is the grasp frame of grasping/gripper.py. Metres, seconds, newtons.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
import trimesh

from sam3d_ros.grasping.antipodal import RETREAT, Grasp
from sam3d_ros.grasping.gripper import ParallelGripper
from sam3d_ros.synth.clutter import Placed, read_poses, settled, world_xml

GRIP_FORCE = 20.0            # of each finger
LIFT = 0.2                   # metres, straight up: what hangs down clears the table
LIFTED = 0.05                # metres that an object has risen when it counts as lifted
APPROACH_TIME, CLOSE_TIME, LIFT_TIME, HOLD_TIME = 0.5, 0.6, 0.8, 0.4
PAD_FRICTION = 1.0
# Contacts of the fingers, in place of the objects': MuJoCo scales a contact's stiffness with the masses, and with its
# default softness a finger passes through an object of a few grams.
_HARD = 'priority="1" solref="0.005 1" solimp="0.99 0.999 0.001"'
_STIFFNESS = 2000.0          # N/m of the fingers' position control, up to GRIP_FORCE
_DAMPING = 200.0             # N s/m: the fingers close at about 0.1 m/s
_CLOSED = -0.02              # metres, where the closing fingers are sent: beyond each other, so that they press


@dataclass(frozen=True)
class Trial:
    """held: index of the object between the fingers after the lift, None if there is none; remaining: all others, at
    rest"""

    held: int | None
    remaining: list[Placed]


# Called with the objects, world_from_hand (4, 4) and the opening of the fingers at each stage of a trial.
Observer = Callable[[list[Placed], np.ndarray, float], None]


def attempt(placed: Sequence[Placed], grasp: Grasp, gripper: ParallelGripper,
            observer: Observer | None = None) -> Trial:
    """Execute `grasp` on the objects, which are at rest."""
    goal = grasp.world_from_grasp
    start = goal @ trimesh.transformations.translation_matrix([0, 0, -RETREAT])
    model = mujoco.MjModel.from_xml_string(world_xml(placed, **_hand_xml(gripper, start)))
    data = mujoco.MjData(model)
    opening = min(grasp.opening, gripper.max_opening) / 2
    for finger in ("left", "right"):
        data.joint(finger).qpos[0] = opening
    data.ctrl[:] = opening
    lifted = goal.copy()
    lifted[2, 3] += LIFT
    before = np.array([item.world_from_object[2, 3] for item in placed])

    def observe() -> None:
        if observer:
            hand = data.body("hand")
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = hand.xmat.reshape(3, 3), hand.xpos
            observer(read_poses(placed, data), pose, float(data.joint("left").qpos[0] + data.joint("right").qpos[0]))

    mujoco.mj_forward(model, data)
    observe()
    _move(model, data, start, goal, APPROACH_TIME)
    observe()
    data.ctrl[:] = _CLOSED
    _move(model, data, goal, goal, CLOSE_TIME)
    observe()
    _move(model, data, goal, lifted, LIFT_TIME)
    _move(model, data, lifted, lifted, HOLD_TIME)
    observe()
    after = read_poses(placed, data)
    risen = np.array([item.world_from_object[2, 3] for item in after]) - before > LIFTED
    held = next((number for number in _between_fingers(model, data) if risen[number]), None)
    return Trial(held, settled([item for number, item in enumerate(after) if number != held]))


def _move(model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray, goal: np.ndarray, duration: float) -> None:
    """Lead the hand straight from one pose to another of the same orientation."""
    steps = round(duration / model.opt.timestep)
    for step in range(1, steps + 1):
        data.mocap_pos[0] = start[:3, 3] + step / steps * (goal[:3, 3] - start[:3, 3])
        mujoco.mj_step(model, data)


def _between_fingers(model: mujoco.MjModel, data: mujoco.MjData) -> list[int]:
    """Numbers of the objects that touch both fingers."""
    touched: dict[str, set[int]] = {"left": set(), "right": set()}
    for first, second in data.contact.geom:
        names = [model.body(model.geom_bodyid[geom]).name for geom in (first, second)]
        for finger, other in (names, names[::-1]):
            if finger in touched and other.startswith("object"):
                touched[finger].add(int(other.removeprefix("object")))
    return sorted(touched["left"] & touched["right"])


def _hand_xml(gripper: ParallelGripper, start: np.ndarray) -> dict[str, str]:
    """Bodies and sections for `world_xml`: the hand hangs on a body that is led by hand, by a stiff weld."""
    left, _, palm = gripper.boxes(0.0)
    place = (f'pos="{_numbers(start[:3, 3])}" '
             f'quat="{_numbers(trimesh.transformations.quaternion_from_matrix(start))}"')

    def geom(box: np.ndarray) -> str:
        return f'type="box" pos="{_numbers(box.mean(axis=0))}" size="{_numbers(np.ptp(box, axis=0) / 2)}"'

    def finger(name: str, box: np.ndarray, side: int) -> str:
        return (f'<body name="{name}" gravcomp="1"><joint name="{name}" type="slide" axis="0 {side} 0" '
                f'range="0 {gripper.max_opening / 2}" limited="true" damping="{_DAMPING}" armature="0.1"/>'
                f'<geom {geom(box)} mass="0.05" friction="{PAD_FRICTION} 0.02 0.002" {_HARD}/></body>')

    bodies = (f'<body name="lead" mocap="true" {place}/>'
              f'<body name="hand" gravcomp="1" {place}><freejoint/><geom {geom(palm)} mass="0.6"/>'
              f'{finger("left", left, 1)}{finger("right", left * [1, -1, 1], -1)}</body>')
    actuators = "".join(f'<position joint="{name}" kp="{_STIFFNESS}" forcerange="-{GRIP_FORCE} {GRIP_FORCE}"/>'
                        for name in ("left", "right"))
    sections = (f'<equality><weld body1="lead" body2="hand" solref="0.01 1"/>'
                f'<joint joint1="left" joint2="right" polycoef="0 1 0 0 0" solref="0.01 1"/></equality>'
                f'<contact><exclude body1="left" body2="right"/><exclude body1="hand" body2="left"/>'
                f'<exclude body1="hand" body2="right"/></contact><actuator>{actuators}</actuator>')
    return {"bodies": bodies, "sections": sections}


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.7f}" for value in np.ravel(values))
