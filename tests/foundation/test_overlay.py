from types import SimpleNamespace

import av
import numpy as np
import pytest

from foundation.overlay import PREDICTED, TRUE, draw, write_video
from pipelines.actions import DOOM, MINECRAFT
from pipelines.schema import DataError

FRAME = np.random.default_rng(0).integers(0, 100, (64, 80, 3), dtype=np.uint8)


def action(keys=(), mouse=(0.0, 0.0), spec=DOOM):
    return {"keys": np.array([k in keys for k in spec.keys], float), "mouse": np.array(mouse)}


def panel(image, scale=3):
    return image[:, 80 * scale :].reshape(-1, 3)


def count(image, colour):
    return int((panel(image) == colour).all(1).sum())


def test_the_frame_is_enlarged_unchanged_and_sizes_are_even_and_equal():
    image = draw(FRAME, action(["forward"]), action(["attack"], (3, -4)), DOOM, scale=3)
    top = (image.shape[0] - 192) // 2
    assert (image[top : top + 192 : 3, :240:3] == FRAME).all()
    assert image.dtype == np.uint8
    assert image.shape[0] % 2 == image.shape[1] % 2 == 0
    assert (
        draw(FRAME, None, None, DOOM).shape == draw(FRAME, action(), None, DOOM, caption="step 1").shape == image.shape
    )


def test_a_key_lights_up_with_its_probability():
    def lightness(p):
        predicted = action()
        predicted["keys"][0] = p
        return panel(draw(FRAME, predicted, None, DOOM)).astype(int).sum()

    levels = [lightness(p) for p in (0.0, 0.3, 0.7, 1.0)]
    assert levels == sorted(levels)
    assert levels[3] > levels[0] + 10_000
    assert count(draw(FRAME, action(["use"]), None, DOOM), PREDICTED) > 1000


def test_only_true_keys_are_outlined():
    none, one, two = (
        count(draw(FRAME, action(), action(keys, (0, 0)), DOOM), TRUE)
        for keys in ([], ["left"], ["left", "use"])
    )  # fmt: skip
    assert one > none + 100
    assert two - one == pytest.approx(one - none, abs=3)
    assert count(draw(FRAME, action(), None, DOOM), TRUE) == 0


@pytest.mark.parametrize(
    ("mouse", "side"), [((0, 15), "right"), ((0, -15), "left"), ((15, 0), "down"), ((-15, 0), "up")]
)
def test_the_arrow_points_where_the_mouse_turned(mouse, side):
    image = draw(FRAME, None, action((), mouse), DOOM)[:, 240:].astype(int)
    still = draw(FRAME, None, action(), DOOM)[:, 240:].astype(int)
    image, still = image[:, :100], still[:, :100]  # without the figures beside the dial
    rows, columns = np.nonzero((image == TRUE).all(2) & (np.arange(len(image)) > 110)[:, None])
    middle = np.argwhere((still == TRUE).all(2) & (np.arange(len(still)) > 110)[:, None]).mean(0)
    offset = {"down": rows.mean() - middle[0], "right": columns.mean() - middle[1]}
    offset |= {"up": -offset["down"], "left": -offset["right"]}
    assert offset[side] > 8
    assert max(offset, key=offset.get) == side


def test_larger_specs_fit():
    image = draw(FRAME, action(spec=MINECRAFT), action(["attack"], spec=MINECRAFT), MINECRAFT)
    assert image.shape[0] > 250


def test_bad_input_is_named():
    with pytest.raises(DataError, match=r"true action has keys \[2\].*'doom'"):
        draw(FRAME, None, {"keys": np.zeros(2), "mouse": np.zeros(2)}, SimpleNamespace(name="doom", keys=DOOM.keys))
    with pytest.raises(DataError, match="uint8"):
        draw(FRAME.astype(float), None, None, DOOM)


def test_the_video_plays_in_browsers(tmp_path):
    frames = [draw(FRAME, action(), action(["attack"], (0, i)), DOOM) for i in range(12)]
    path = tmp_path / "play ü.mp4"
    assert write_video(path, iter(frames), fps=17.5) == path
    data = path.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")  # index in front
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate) == 17.5
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == 12
    error = np.abs(decoded[5].astype(int) - frames[5]).mean()
    assert error < 12
    assert list(tmp_path.iterdir()) == [path]
