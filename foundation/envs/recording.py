"""Records the scripted player: one video is one session on one map, with a log of what was pressed in every frame."""

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foundation.envs.doom_engine import FACTS, NATIVE
from foundation.envs.doom_player import ScriptedPlayer
from foundation.envs.registry import make
from pipelines.actions import DOOM
from pipelines.video import encode

FORMAT = {"format": "foundation-policy/actions", "version": 1}
MOVED = 2.0  # units a frame along a key's direction that count as having moved; a full stride is 16.7
TURNED = 0.3  # degrees
SHOT_WITHIN = 4  # frames from the press to the shot; a pistol fires in the third
USE_REACH = 64.0  # units, the engine's


@dataclass(frozen=True)
class Session:
    """One video to record. Its content depends on nothing but these values."""

    task: dict
    split: str
    seed: int
    index: int
    frames: int
    video: str  # path of the mp4
    log: str  # path of the jsonl
    player: dict  # arguments of ScriptedPlayer
    encoding: dict  # arguments of pipelines.video.encode

    @property
    def stream(self):
        """Seed of all sessions of one task, split and run seed."""
        return zlib.crc32(f"{self.task['name']}/{self.split}".encode()), self.seed

    @property
    def complete(self):
        return Path(self.video).exists() and Path(self.log).exists()


def record(session):
    """Plays and writes one video with its log; the video's rename comes last and marks completion."""
    rng = np.random.default_rng([*session.stream, session.index])
    overrides = {"privileged": True, "size": NATIVE}
    if "split" in session.task["env"]:
        overrides["split"] = session.split
    env = make(session.task, **overrides)
    try:
        take = Take(env, session, rng)
        part = Path(session.video).with_suffix(".unfinished.mp4")
        encode(take.play(), env.fps, part, **session.encoding)
        take.write(session.log)
        os.replace(part, session.video)
    finally:
        env.close()


class Take:
    """The run of one session: frames as they come, rows of the log at the end."""

    def __init__(self, env, session, rng):
        self.env, self.session, self.rng = env, session, rng
        order = np.random.default_rng(session.stream).permutation(len(env.maps))
        self.map = env.maps[order[session.index % len(order)]]  # all maps before any comes again
        self.player = ScriptedPlayer(env, int(rng.integers(2**31)), **session.player)
        self.rows, self.before, self.after, self.used = [], [], [], []

    def play(self):
        """Yields uint8 [h w c] frames; appends one row per frame."""
        first = True
        for _ in range(self.session.frames):
            if first:
                observation, _ = self.env.reset(seed=int(self.rng.integers(2**30)), options={"map": self.map})
                self.player.reset()
                done_lines, pressed = set(), False
            action = self.player.act()
            before = self.env.facts
            self.used.append(self._uses(action, before, pressed, done_lines))
            pressed = bool(action["keys"][DOOM.keys.index("use")])
            yield observation
            observation, reward, terminated, truncated, _ = self.env.step(action)
            self.before.append(before)
            self.after.append(self.env.facts)
            self.rows.append(row(action, reward, first, terminated, truncated))
            first = terminated or truncated

    def _uses(self, action, facts, pressed, done_lines):
        """Whether this press of USE moves something: it is new, and meets a door or switch that still works."""
        if pressed or not action["keys"][DOOM.keys.index("use")]:
            return False
        level = self.env.grid.level
        line = level.use_target(facts[:2], facts[FACTS.index("angle")], USE_REACH)
        if line is None or line in done_lines:
            return False
        if not level.repeatable[line]:
            done_lines.add(line)
        return True

    def write(self, path):
        keys = np.array([[key in r["keys"] for key in DOOM.keys] for r in self.rows])
        marks = effective(keys, np.array(self.before), np.array(self.after), np.array(self.used))
        names = (*DOOM.keys, "pitch", "yaw")
        header = FORMAT | {
            "actions": DOOM.to_dict(), "fps": self.env.fps, "task": self.session.task["name"], "map": self.map,
            "split": self.session.split, "seed": self.session.seed, "index": self.session.index, "player": "scripted",
        }  # fmt: skip
        part = Path(path).with_suffix(".unfinished")
        with part.open("w") as file:
            file.write(json.dumps(header) + "\n")
            for r, mark in zip(self.rows, marks, strict=True):
                r["effective"] = [name for name, on in zip(names, mark, strict=True) if on]
                file.write(json.dumps(r) + "\n")
        os.replace(part, path)


def row(action, reward, first, terminated, truncated):
    return {
        "keys": [key for key, held in zip(DOOM.keys, action["keys"], strict=True) if held],
        "mouse": [round(float(m), 3) for m in action["mouse"]],
        "reward": round(reward, 6),
        "first": first,
        "terminated": terminated,
        "truncated": truncated,
    }


def effective(keys, before, after, used):
    """Which keys and mouse axes did something; for scoring only. bool [t k+2], pitch and yaw last.

    keys bool [t k] held; before, after float [t facts] around each frame's action; used bool [t] from `_uses`.
    Movement: the player came at least MOVED units along the key's direction. Attack: ammunition of the same weapon
    fell within SHOT_WITHIN frames (so not in cooldown, and not with bare fists). Mouse: the view turned by TURNED.
    """
    column = FACTS.index
    angle = np.radians(before[:, column("angle")])
    moved = after[:, :2] - before[:, :2]  # t 2
    ahead = moved[:, 0] * np.cos(angle) + moved[:, 1] * np.sin(angle)
    left = -moved[:, 0] * np.sin(angle) + moved[:, 1] * np.cos(angle)
    same = before[:, column("selected_weapon")] == after[:, column("selected_weapon")]
    fired = (after[:, column("selected_weapon_ammo")] < before[:, column("selected_weapon_ammo")]) & same
    soon = np.zeros_like(fired)
    for delay in range(min(SHOT_WITHIN, len(fired))):
        soon[: len(fired) - delay] |= fired[delay:]
    along = np.stack([ahead > MOVED, -ahead > MOVED, left > MOVED, -left > MOVED, soon, used], -1)  # order of DOOM.keys
    turned = np.stack([after[:, column(name)] - before[:, column(name)] for name in ("pitch", "angle")], -1)
    return np.concatenate([keys & along, np.abs((turned + 180) % 360 - 180) > TURNED], -1)


def read_log(path):
    """(header, rows) of a jsonl that `record` wrote."""
    with open(path) as file:
        header, *rows = map(json.loads, file)
    return header, rows
