"""Reacher2d: the sparse arm of LaMo (arXiv:2310.20587). Two links in a plane turn their tip to a target and hold it.

Sizes, gains, reset and reward follow the published task; the model is written for MuJoCo's present XML.
"""

import numpy as np

from foundation.envs.states import StateEnv, require
from pipelines.trajectories import Spaces

UPPER, FORE, TIP = 0.6, 0.4, 0.45  # metres: the links, and the fingertip along the second (the end of its cap)
ELBOW = (-2.0, 3.5)  # radians
SUBSTEPS, TIMESTEP = 15, 0.01
DT = SUBSTEPS * TIMESTEP  # seconds of an action
BEND = np.pi / 4  # at zero angles the first link points there, and the second bends back by as much
NEAR = 0.1  # metres, |dx| + |dy|
GAINS = 6.0, 2.0  # of the expert, for angle and speed
MODEL = f"""
<mujoco model="reacher2d">
  <compiler angle="radian"/>
  <option gravity="0 0 0" timestep="{TIMESTEP}" integrator="RK4"/>
  <default>
    <joint type="hinge" axis="0 0 1" damping="1" armature="0.05"/>
    <geom type="capsule" size="0.05" contype="0" conaffinity="0"/>
    <motor gear="1" ctrllimited="true" ctrlrange="-1 1"/>
  </default>
  <worldbody>
    <body name="upper" euler="0 0 {BEND}">
      <joint name="shoulder"/>
      <geom fromto="0 0 0 {UPPER} 0 0"/>
      <body name="fore" pos="{UPPER} 0 0" euler="0 0 {-BEND}">
        <joint name="elbow" limited="true" range="{ELBOW[0]} {ELBOW[1]}"/>
        <geom fromto="0 0 0 {FORE} 0 0"/>
        <site name="tip" pos="{TIP} 0 0"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="shoulder"/>
    <motor joint="elbow"/>
  </actuator>
</mujoco>
"""


class Reacher2d(StateEnv):
    """Observation [12]: sin and cos of both angles, speeds * dt, tip, target, tip - target. Reward 1 near the target.

    Angles start in U(-2, 2) at rest, the target in the ring of radii 0.5 to 1; 100 steps, never terminated.
    """

    def __init__(self, episode_steps=100, seed=None):
        super().__init__(Spaces(12, 2, low=(-1.0,) * 2, high=(1.0,) * 2), 1 / DT, episode_steps, seed)
        self._mujoco = require("mujoco", "mujoco")
        self._model = self._mujoco.MjModel.from_xml_string(MODEL)
        self._data = self._mujoco.MjData(self._model)

    def _begin(self, seed):
        rng = np.random.default_rng(seed)
        self._mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:] = rng.uniform(-2, 2, 2)
        radius, angle = np.sqrt(rng.uniform(0.5**2, 1)), rng.uniform(-np.pi, np.pi)  # even over the area
        self._target = radius * np.array([np.cos(angle), np.sin(angle)])
        return self._look()

    def _look(self):
        self._mujoco.mj_kinematics(self._model, self._data)  # a step leaves the sites where they were before it
        tip, angles = self._data.site_xpos[0, :2], self._data.qpos
        parts = np.sin(angles), np.cos(angles), DT * self._data.qvel, tip, self._target, tip - self._target
        return np.concatenate(parts)

    def _advance(self, action):
        self._data.ctrl[:] = action
        self._mujoco.mj_step(self._model, self._data, SUBSTEPS)
        observation = self._look()
        return observation, float(np.abs(observation[-2:]).sum() < NEAR), False, False, None

    def scripted(self):
        return expert


def expert(observation):
    """Inverse kinematics of the nearer of the two solutions, then a spring to its angles and a damper. [12] -> [2]"""
    observation = np.asarray(observation, np.float64)
    shoulder, elbow = np.arctan2(observation[:2], observation[2:4])
    elbow += 2 * np.pi * (elbow < ELBOW[0])  # its range lies within one turn
    speeds, target = observation[4:6] / DT, observation[8:10]
    goals = [(turn(wanted - shoulder), bent - elbow) for wanted, bent in solutions(target)]
    error = np.array(min(goals, key=lambda goal: np.abs(goal).sum()))
    return np.clip(GAINS[0] * error - GAINS[1] * speeds, -1, 1).astype(np.float32)


def solutions(target):
    """Angles (shoulder, elbow) that put the tip on the target, those within the elbow's range; at least one."""
    x, y = target
    cosine = np.clip((x * x + y * y - UPPER**2 - TIP**2) / (2 * UPPER * TIP), -1, 1)
    found = []
    for fold in (np.arccos(cosine), -np.arccos(cosine)):  # of the second link against the first
        direction = np.arctan2(y, x) - np.arctan2(TIP * np.sin(fold), UPPER + TIP * np.cos(fold))
        elbow = turn(fold + BEND)
        elbow += 2 * np.pi * (elbow < ELBOW[0])
        if elbow <= ELBOW[1]:
            found.append((direction - BEND, elbow))
    return found


def turn(angle):
    """The same direction in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi
