import numpy as np

from pipelines.transforms import ClipAugment

OFF = dict(hue=0, saturation=0, brightness=0, contrast=0, rotation=0, scale=0, shear=0, translation=0)


def still(length=5):
    picture = np.random.default_rng(0).integers(0, 256, (1, 24, 32, 3), dtype=np.uint8)
    return np.repeat(picture, length, 0)


def test_switched_off_it_changes_nothing():
    frames = still()
    np.testing.assert_array_equal(ClipAugment(**OFF)(frames, np.random.default_rng(1)), frames)


def test_one_draw_serves_all_frames_of_a_clip():
    out = ClipAugment()(still(), np.random.default_rng(1))
    assert (out == out[:1]).all()
    assert (out != still()).mean() > 0.5


def test_same_seed_same_result():
    first, second, third = (ClipAugment()(still(), np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


def test_saturation_keeps_grey_and_brightness_scales():
    grey = np.full((2, 8, 8, 3), 100, np.uint8)
    out = ClipAugment(**{**OFF, "saturation": 0.5, "hue": 0.5})(grey, np.random.default_rng(0))
    assert abs(out.astype(int) - 100).max() <= 1
    rng = np.random.default_rng(0)
    factor = 1 + [rng.uniform(-1, 1) * a for a in (0, 0, 0.5, 0)][2]
    bright = ClipAugment(**{**OFF, "brightness": 0.5})(grey, np.random.default_rng(0))
    assert abs(int(bright[0, 0, 0, 0]) - round(100 * factor)) <= 1


def test_translation_moves_the_picture_by_whole_pixels_at_most():
    frames = np.zeros((2, 21, 21, 3), np.uint8)
    frames[:, 10, 10] = 255
    out = ClipAugment(**{**OFF, "translation": 3.0})(frames, np.random.default_rng(5)).astype(float)[0, :, :, 0]
    y, x = (out.sum(1) @ np.arange(21) / out.sum(), out.sum(0) @ np.arange(21) / out.sum())
    assert 0.1 < max(abs(y - 10), abs(x - 10)) <= 3.05
