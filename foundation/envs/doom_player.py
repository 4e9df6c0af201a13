"""A scripted player with a person's hands: explores, opens doors, takes things, fights, pauses, fidgets.

It reads the engine's state (map, positions of things and monsters), never the picture, and answers with held keys and
smooth, bounded mouse motion. It plays well enough to be worth imitating and not so cleanly that imitation is trivial:
about a third of its frames are null, some are random, and it strafes, backs off and looks around.
"""

import numpy as np

from foundation.envs.doom_engine import FACTS
from foundation.envs.doom_navigator import Navigator
from pipelines.actions import DOOM

MONSTERS = {
    *("Zombieman", "ZombieMan", "ShotgunGuy", "ChaingunGuy", "DoomImp", "Demon", "Spectre", "LostSoul", "Cacodemon"),
    *("HellKnight", "BaronOfHell", "Arachnotron", "PainElemental", "Revenant", "Fatso", "Archvile", "Cyberdemon"),
    *("SpiderMastermind", "WolfensteinSS", "MarineChainsawVzd", "MarineChainsaw"),
}
THINGS = {
    *("Stimpack", "Medikit", "CustomMedikit", "HealthBonus", "ArmorBonus", "GreenArmor", "BlueArmor", "Soulsphere"),
    *("Megasphere", "Clip", "ClipBox", "Shell", "ShellBox", "RocketAmmo", "RocketBox", "Cell", "CellPack", "Backpack"),
    *("Shotgun", "SuperShotgun", "Chaingun", "RocketLauncher", "PlasmaRifle"),
    *("BlueCard", "YellowCard", "RedCard", "BlueSkull", "YellowSkull", "RedSkull"),
}
Z, ANGLE, PITCH, HEALTH, AMMO = (
    FACTS.index(name) for name in ("position_z", "angle", "pitch", "health", "selected_weapon_ammo")
)


def wrap(degrees):
    """To [-180, 180)."""
    return (degrees + 180) % 360 - 180


def pressed(keys):
    """Names of a {key: bool} that are down."""
    return tuple(key for key, down in keys.items() if down)


def around(bearing):
    """Keys that move `bearing` degrees to the right of the view."""
    size = abs(bearing)
    return pressed({"right" if bearing > 0 else "left": 25 < size < 155, "forward": size < 65, "backward": size > 115})


class Hand:
    """One mouse axis: turns towards an angle with bounded speed and acceleration, rests inside a dead zone."""

    def __init__(self, rng, speed, acceleration):
        self.rng, self.speed, self.acceleration = rng, speed, acceleration  # degrees/frame, degrees/frame^2
        self.rate, self.turning = 0.0, False

    def turn(self, error, dead_zone=7.0):
        """Degrees to turn this frame given the angle still to go."""
        self.turning = abs(error) > (dead_zone / 4 if self.turning else dead_zone)
        wanted = float(np.clip(0.4 * error, -self.speed, self.speed)) if self.turning else 0.0
        return self.sweep(wanted)

    def sweep(self, wanted):
        """Degrees to turn this frame when aiming for a constant rate."""
        step = 2 * self.acceleration if wanted == 0 else self.acceleration
        self.rate += float(np.clip(wanted - self.rate, -step, step))
        if wanted == 0 and abs(self.rate) < 0.5:
            self.rate = 0.0
        return round(self.rate * (1 + 0.1 * self.rng.standard_normal()), 1)

    def rest(self):
        self.rate, self.turning = 0.0, False
        return 0.0


class ScriptedPlayer:
    """Plays a privileged DoomEnv; call `reset()` after every env.reset and `act()` once per frame.

    null_share: share of frames without keys or mouse motion that pauses are steered to.
    random_share: share of frames that belong to random fidgeting.
    """

    def __init__(self, env, seed, null_share=0.34, random_share=0.12):
        self.env, self.rng = env, np.random.default_rng(seed)
        self.null_share, self.random_share = null_share, random_share
        self.frames = self.nulls = 0

    def reset(self):
        rng = self.rng
        self.navigator = Navigator(self.env.grid, rng)
        self.yaw = Hand(rng, speed=rng.uniform(8, 15), acceleration=rng.uniform(2, 4))
        self.pitch = Hand(rng, speed=rng.uniform(2, 4), acceleration=1.0)
        self.clock, self.left_of = 0, {"pause": 0, "burst": 0, "glance": 0, "style": 0, "recover": 0, "use": 0}
        self.mode, self.glance, self.view_offset = "play", 0.0, 0.0
        self.held, self.hold = (), 0
        self.items, self.monsters, self.enemy = {}, [], None
        self.door_used, self.target, self.hurt = -1000, None, 0
        self.trail, self.health = [], 100.0
        self.fought = {}  # monster -> (frames spent on it, last of them)

    # one frame

    def act(self):
        """{"keys": uint8 [k], "mouse": float32 [2]} for the current frame."""
        self._observe()
        keys, mouse = self._decide()
        held = np.array([key in keys for key in DOOM.keys], np.uint8)
        mouse = np.clip(np.array(mouse, np.float32), -DOOM.camera_max, DOOM.camera_max)
        self.frames += 1
        self.nulls += not (held.any() or np.abs(mouse).max() > 0.5)
        return {"keys": held, "mouse": mouse}

    def _decide(self):
        self.navigator.tick()
        if self._resting():
            return (), (self.pitch.rest(), self.yaw.rest())
        if self.mode == "random":
            return self._fidget()
        if self.left_of["recover"] > 0:
            self.left_of["recover"] -= 1
            return self.recovery, (0.0, self.yaw.sweep(self.recovery_turn))
        if self.enemy is not None:
            return self._fight()
        return self._walk()

    def _observe(self):
        facts = self.env.facts
        self.clock += 1
        self.position, self.angle = np.array(facts[:2]), facts[ANGLE]
        self.hurt = 30 if facts[HEALTH] < self.health - 2 else max(self.hurt - 1, 0)
        self.health = facts[HEALTH]
        if self.clock % 4 == 1:
            self.navigator.look(self.position)
            objects = self.env.objects()
            self.items = {o[0]: np.array(o[2:4]) for o in objects if o[1] in THINGS}
            self.monsters = [o for o in objects if o[1] in MONSTERS]
            self.enemy = self._pick_enemy()

    # rests and random bursts

    def _resting(self):
        """Alternates bursts of activity with pauses so that null frames approach `null_share`."""
        if self.left_of["pause"] > 0:
            self.left_of["pause"] -= 1
            return True
        self.left_of["burst"] -= 1
        if self.left_of["burst"] > 0:
            return False
        self.left_of["burst"] = int(self.rng.integers(6, 26))
        self.mode = "random" if self.rng.random() < self.random_share / (1 - self.null_share) else "play"
        self.sweep = (self.rng.normal(0, 1.0), self.rng.normal(0, 5))
        deficit = self.null_share * (self.frames + 60) - self.nulls - 20
        busy = 1.0 if self.enemy is None else 0.0 if self.hurt else 0.4
        self.left_of["pause"] = int(np.clip(busy * deficit * self.rng.uniform(0.2, 0.9), 0, 24))
        return self.left_of["pause"] > 0

    def _fidget(self):
        if self.hold <= 0:
            chances = (0.35, 0.2, 0.2, 0.2, 0.12, 0.06)  # order of DOOM.keys
            self.held = tuple(k for k, p in zip(DOOM.keys, chances, strict=True) if self.rng.random() < p)
            self.hold = int(self.rng.integers(3, 12))
            still = self.rng.random() < 0.4
            self.sweep = (0.0, 0.0) if still else (self.rng.normal(0, 1.0), self.rng.normal(0, 5))
        self.hold -= 1
        level = 0.1 * wrap(-self._pitch())  # do not wander off to the ceiling
        return self.held, (self.pitch.sweep(self.sweep[0] + level), self.yaw.sweep(self.sweep[1]))

    # walking

    def _walk(self):
        self._plan()
        if self.target is None:
            return self._fidget()
        if self._stuck():
            return (), (0.0, 0.0)
        bearing = self._bearing(self.target)
        self._style()
        keys = self._keys_towards(bearing)
        mouse = self._pitch_motion(), self.yaw.turn(wrap(bearing + self.view_offset))
        return keys + self._door(), mouse

    def _plan(self):
        if self.clock % 3 == 0 or self.target is None:
            self.target = self.navigator.waypoint(self.position, self.items, hungry=self.health < 60)

    def _bearing(self, place):
        """Degrees to turn right to face `place`."""
        dx, dy = place - self.position
        return wrap(self.angle - np.degrees(np.arctan2(dy, dx)))

    def _pitch(self):
        return wrap(self.env.facts[PITCH])

    def _style(self):
        """Mostly looks where it goes; now and then looks aside for a while and strafes along."""
        self.left_of["style"] -= 1
        if self.left_of["style"] > 0:
            return
        aside = self.view_offset == 0.0 and self.rng.random() < 0.3
        self.view_offset = float(self.rng.choice([-1, 1]) * self.rng.uniform(30, 80)) if aside else 0.0
        self.left_of["style"] = int(self.rng.integers(8, 24) if aside else self.rng.integers(20, 90))

    def _keys_towards(self, bearing):
        """Held keys that move along `bearing` (degrees right of the view); kept for a few frames."""
        self.hold -= 1
        if self.hold <= 0:
            size, side = abs(bearing), "right" if bearing > 0 else "left"
            if self.view_offset:
                self.held = around(bearing)
            else:
                self.held = pressed({"forward": size < 55, side: 20 < size < 90 and self.rng.random() < 0.25})
            self.hold = int(self.rng.integers(2, 6)) if size < 20 else 2
        return self.held

    def _pitch_motion(self):
        """Glances up and down now and then, else levels the view."""
        self.left_of["glance"] -= 1
        if self.left_of["glance"] <= 0:
            self.glance = float(self.rng.normal(0, 9)) if self.glance == 0 and self.rng.random() < 0.5 else 0.0
            self.left_of["glance"] = int(self.rng.integers(10, 60))
        return self.pitch.turn(self.glance - self._pitch(), dead_zone=4.0)

    def _door(self):
        """Presses USE at a door on the path, once per three seconds; holds it for a moment."""
        self.left_of["use"] -= 1
        if self.left_of["use"] > 0:
            return ("use",)
        if self.clock - self.door_used < 55 or self.clock % 2 or not self.navigator.door_ahead():
            return ()
        line = self.env.grid.level.use_target(self.position, self.angle, reach=56.0)
        if line is None or not self.env.grid.level.door[line]:
            return ()
        self.door_used, self.left_of["use"] = self.clock, int(self.rng.integers(2, 5))
        return ("use",)

    def _stuck(self):
        """After 14 walking frames without progress: step back or aside, and think of another way."""
        self.trail.append(self.position)
        if len(self.trail) < 14:
            return False
        moved = np.hypot(*(self.trail[-1] - self.trail[0]))
        self.trail = self.trail[7:]
        if moved > 24 or self.clock - self.door_used < 25:
            return False
        self.trail = []
        self.navigator.blocked(self.position, self.target)
        self.target, self.door_used = None, -1000
        options = (("backward",), ("backward", "left"), ("backward", "right"), ("left",), ("right",))
        self.recovery = options[int(self.rng.integers(len(options)))]
        self.recovery_turn = float(self.rng.normal(0, 5))
        self.left_of["recover"] = int(self.rng.integers(5, 12))
        return True

    # fighting

    def _pick_enemy(self):
        """The nearest monster in view and in line of sight; one behind only when it hurts or is near."""
        armed = self.env.facts[AMMO] > 0
        places = {monster[0]: np.array(monster[2:4]) for monster in self.monsters}
        distances = {name: float(np.hypot(*(place - self.position))) for name, place in places.items()}
        for monster in sorted(self.monsters, key=lambda monster: distances[monster[0]])[:4]:
            name, distance = monster[0], distances[monster[0]]
            noticed = abs(self._bearing(places[name])) < 60 or distance < 250 or self.hurt
            near = distance < (900 if armed else 120)
            if near and noticed and self._worth(name) and self.env.grid.level.sees(self.position, places[name]):
                return monster
        return None

    def _worth(self, name):
        """Loses patience with a monster that does not die after some five seconds, for about fifteen."""
        since = self.clock - self.fought.get(name, (0, -1000))[1]
        return self.fought.get(name, (0, 0))[0] < 90 or since > 250

    def _fight(self):
        name, place = self.enemy[0], np.array(self.enemy[2:4])
        spent, last = self.fought.get(name, (0, -1000))
        self.fought[name] = (spent + 1 if self.clock - last < 250 else 1, self.clock)
        distance = max(np.hypot(*(place - self.position)), 1.0)
        bearing = self._bearing(place)
        height = self.enemy[4] - self.env.facts[Z]
        down = -np.degrees(np.arctan2(height, distance)) - self._pitch()
        mouse = self.pitch.turn(down, dead_zone=5.0), self.yaw.turn(bearing, dead_zone=2.5)
        aimed = abs(bearing) < max(3.0, np.degrees(np.arctan2(22, distance)))
        return self._footwork(distance) + pressed({"attack": aimed}), mouse

    def _footwork(self, distance):
        """Goes on along the path with the eyes on the enemy, or dodges."""
        self.hold -= 1
        if self.hold <= 0:
            self._plan()
            draw, self.hold = self.rng.random(), int(self.rng.integers(4, 12))
            if self.target is not None and draw < 0.5:
                self.held, self.hold = around(self._bearing(self.target)), 4
            else:
                sideways = {"left": draw < 0.65, "right": 0.65 < draw < 0.8}
                self.held = pressed({**sideways, "backward": distance < 160, "forward": distance > 500})
        return tuple(key for key in self.held if key not in ("attack", "use"))
