"""Final numbers: every episode counted once, intervals by hand, the command on the real game."""

import json
from collections import Counter

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from foundation.actors import NoopActor, PolicyActor, RandomActor
from foundation.evaluate import main, play
from foundation.rollout import Episode
from foundation.scores import bootstrap, say, summarise, wilson
from pipelines.command import CONFIGS, execute
from pipelines.schema import DataError
from tests.foundation.toy_world import CODEC, Bar, TinyPolicy


def config(name, folder, *overrides):
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose(name, [f"run.dir={folder}", "task.env.episode_tics=40", *overrides])


@pytest.mark.parametrize("episodes", [1, 3, 4, 10])
def test_every_seed_is_played_once_and_to_its_end(episodes):
    worlds = [Bar(length=3 + i) for i in range(4)]  # slots finish at different times
    played = play(PolicyActor(TinyPolicy(), CODEC), worlds, list(range(100, 100 + episodes)))
    assert sorted(e.seed for e in played) == list(range(100, 100 + episodes))
    assert all(e.frames == 3 + (e.seed - 100) % 4 for e in played if episodes >= 4)


def test_same_seeds_give_the_same_episodes():
    worlds = [Bar() for _ in range(3)]
    for actor in (PolicyActor(TinyPolicy(), CODEC), RandomActor(CODEC), PolicyActor(TinyPolicy(), CODEC, greedy=True)):
        assert play(actor, worlds, range(7)) == play(actor, worlds, range(7))


def test_noop_gets_nothing_and_random_about_nothing():
    worlds = [Bar() for _ in range(8)]
    assert {e.returns for e in play(NoopActor(CODEC), worlds, range(8))} == {0.0}
    assert abs(np.mean([e.returns for e in play(RandomActor(CODEC), worlds, range(200))])) < 0.1


def test_memory_does_not_leak_between_episodes():
    """The second episode of a slot equals the same episode played first."""
    policy = TinyPolicy()
    second = play(PolicyActor(policy, CODEC, greedy=True), [Bar()], [5, 6])[1]
    assert second == play(PolicyActor(policy, CODEC, greedy=True), [Bar()], [6])[0]


def test_watch_sees_each_action_and_the_final_observation():
    seen = Counter()
    play(NoopActor(CODEC), [Bar(length=3), Bar(length=3)], range(3), lambda n, world, a: seen.update([(n, a is None)]))
    assert seen == {(n, end): 1 if end else 3 for n in range(3) for end in (False, True)}


def test_wilson_by_hand():
    # centre (0 + z^2/2)/(10 + z^2) = half: interval [0, z^2/(10 + z^2)] = [0, 3.8415/13.8415]
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-4)
    low, high = wilson(5, 10)
    assert low + high == pytest.approx(1.0)


def test_bootstrap_covers_the_mean_and_shrinks():
    values = np.random.default_rng(0).normal(3, 1, 400)
    low, high = bootstrap(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert np.isnan(bootstrap([1.0])).all()


def test_summary_leaves_success_out_where_the_task_has_none():
    numbers = summarise([Episode(0, 1.0, 5, None), Episode(1, 2.0, 7, None)], "evaluate")
    assert numbers["evaluate/return"] == 1.5
    assert numbers["evaluate/episode_frames"] == 6
    assert not any("success" in name for name in numbers)
    assert summarise([Episode(0, 1.0, 5, True), Episode(1, 2.0, 7, False)], "x")["x/success"] == 0.5


def test_a_single_episode_has_an_interval_for_success_only(caplog):
    numbers = summarise([Episode(0, 1.0, 5, True)], "x")
    with caplog.at_level("INFO"):
        say("policy", numbers, "x")
    assert "return 1.000 [-]  success 1.000 [0.207, 1.000]  (1 episodes)" in caplog.text


def test_command_on_the_game_with_baselines_and_video(tmp_path):
    cfg = config("evaluate", tmp_path, "policy=player", "episodes=3", "environments=2", "video=1", "baselines=[noop]")
    execute(main.function, cfg)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["evaluate/episodes"] == summary["evaluate/noop/episodes"] == 3
    assert summary["evaluate/noop/return"] == pytest.approx(-0.004, abs=1e-3)  # 40 tics at -0.0001
    assert (tmp_path / "episode-0.mp4").stat().st_size > 1000
    assert not (tmp_path / "episode-1.mp4").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy=null", "policy=<folder> is missing"),
        ("policy=/no/such/folder", "not a hub folder"),
        ("policy=random episodes=0", "at least 1"),
        ("policy=random baselines=[clever]", "expected one of"),
        ("policy=random prompt=goal", "the task doom_my_way_home shows frames"),
        ("policy=random device=tpu", "device=tpu: expected cpu"),
    ],
)
def test_user_errors_say_what_to_do(tmp_path, override, message):
    with pytest.raises(DataError, match=message):
        main.function(config("evaluate", tmp_path, *override.split()))
