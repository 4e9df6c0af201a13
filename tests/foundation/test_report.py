import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from foundation import page, plots, report, report_results
from foundation.run_files import read_metrics
from pipelines.actions import DOOM
from pipelines.command import CONFIGS
from pipelines.pixels import encode
from pipelines.schema import DataError
from pipelines.scoring import Truth, label_report

HOSTILE = '<img src=x onerror="alert(1)">&$x_{'
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Strict(HTMLParser):
    """Fails on tags that do not nest; collects tags, text and the anchors of sections."""

    def __init__(self):
        super().__init__()
        self.open, self.sections, self.text, self.tags, self.links = [], [], [], set(), []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.links += [v for k, v in attributes.items() if k in ("src", "href", "xlink:href", "action", "data")]
        if tag == "section":
            self.sections.append(attributes["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(path):
    parser = Strict()
    html = path.read_text(encoding="utf-8")
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser, html


def labels():
    rng = np.random.default_rng(0)
    held = rng.random((300, 6)) < [0.5, 0.2, 0.2, 0.2, 0.3, 0.0]
    p = np.clip(np.where(held, 0.8, 0.1) + rng.normal(0, 0.1, held.shape), 0, 1)
    truth = Truth(held, rng.normal(0, 4, (300, 2)), np.zeros(300, int), np.ones((300, 8), bool))
    camera = rng.dirichlet(np.ones(DOOM.camera_bins), (300, 2))
    return json.dumps(label_report(truth, p, camera, DOOM).to_dict())


def metrics():
    rows = [f"0,{s},{2 / (1 + s / 50) + 0.1 * (s % 3)}," for s in range(0, 500, 10)] + ["0,490,,1.5", "0,49"]
    return "\n".join(["epoch,step,train/loss,val/loss", *rows])


def context_curves(figures=("regret",), x=range(1, 500)):
    rows = [f"{figure},{who},{n},{n**0.5:.3f},0.1" for figure in figures for who in ("policy", "ucb") for n in x]
    return "\n".join(["figure,who,x,mean,sem", *rows, "regret,ucb,nan,1,1", "regret,ucb,7"])


def video():
    return encode((np.full((32, 48, 3), i, np.uint8) for i in range(4)), 10)


# section -> file that makes it appear
FILES = {
    "results": ("summary.json", lambda: json.dumps({"score": 0.5, "score_majority": 0.25, "minutes": 3})),
    "returns": ("arms.json", lambda: '{"scratch": [0, 1, 2], "anchored": {"mean": 3, "low": 2, "high": 4}}'),
    "context": ("curves.csv", context_curves),
    "curves": ("metrics.csv", metrics),
    "labels": ("label_report.json", labels),
    "play": ("episode.mp4", video),
    "rejected": ("rejected.jsonl", lambda: '{"source": "a.mp4", "code": "truncated"}\n'),
    "reproduce": ("config.yaml", lambda: "run: {name: pretrain, seed: 7}\n"),
}  # fmt: skip


def fill(folder, sections):
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        name, make = FILES[section]
        content = make()
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.mark.parametrize("section", FILES)
def test_a_section_appears_with_its_file(section, tmp_path):
    report.write(tmp_path / "out.html", [fill(tmp_path / "run", [section])])
    parser, _ = parse(tmp_path / "out.html")
    assert set(parser.sections) == {section, "reproduce"}  # machine and seed are always told


def test_the_whole_page_is_one_file_without_requests(tmp_path):
    summary = report.write(tmp_path / "out.html", [fill(tmp_path / "run", FILES)], title="All of it")
    parser, html = parse(tmp_path / "out.html")
    assert parser.sections == summary["sections"].split() == list(FILES)
    without_videos = re.sub(r"base64,[\w+/=]*", "", html)
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", without_videos)
    assert all(link.startswith(("#", "data:video/mp4;base64,")) for link in parser.links)
    assert not parser.tags & {"script", "iframe", "link", "object"}
    text = " ".join(parser.text)
    for told in ("forward", "event F1", "majority", "truncated", "a.mp4", "7", "Mouse yaw", "Calibration of keys"):
        assert told in text
    assert set(re.findall(r"url\(#(\w+)\)", html)) <= set(re.findall(r'id="(\w+)"', html))
    again = tmp_path / "again.html"
    report.write(again, [tmp_path / "run"], title="All of it")
    assert again.read_text() == html


def test_curves_of_learners_in_context_and_where_a_policy_goes(tmp_path):
    room = {"cells": [[0, 0], [0, 1]], "moves": [[1, 0], [0, 0]], "goal": [0, 1], "transitions": 9, "goal_seen": True}
    (tmp_path / "curves.csv").write_text(context_curves(("online", "offline"), range(1, 40)))
    (tmp_path / "policy.json").write_text(json.dumps(room))
    report.write(tmp_path / "out.html", [tmp_path])
    parser, html = parse(tmp_path / "out.html")
    text = set(map(str.strip, parser.text))
    assert html.count("<figure>") == 3 and "with the goal among the 9 transitions" in " ".join(text)
    assert {"online", "offline", "policy", "ucb", "most probable action in each cell"} <= text
    assert html.count("stroke-dasharray") >= 2  # a rival in each figure


@pytest.mark.parametrize(("x", "logarithmic"), [(range(1, 40), False), (range(1, 500), True), ([0, 500], False)])
def test_the_axis_of_curves_over_decades_is_logarithmic(x, logarithmic, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "figure", lambda paint, *size: drawn.append(paint))
    plots.bands([("policy", list(x), [1.0] * len(x), [0.1] * len(x), False)])
    axes = Figure().subplots()
    drawn[0](axes)
    assert (axes.get_xscale() == "log") == logarithmic
    low, high = axes.collections[0].get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((1 - 0.196, 1 + 0.196))


DAMAGE = {"cells": [[[0, 0]], 3], "moves": [[[0], [1]], None], "goal": [["a", 1], [1e999, 0], None]}


@pytest.mark.parametrize("change", [{name: value} for name, values in DAMAGE.items() for value in values], ids=str)
def test_a_damaged_policy_is_told(change, tmp_path):
    room = {"cells": [[0, 0], [0, 1]], "moves": [[1, 0], [0, 0]], "goal": [0, 1]} | change
    (tmp_path / "policy.json").write_text(json.dumps(room))
    report.write(tmp_path / "out.html", [tmp_path])
    assert "policy.json could not be read" in (tmp_path / "out.html").read_text()


def test_hostile_names_and_values_stay_text(tmp_path):
    name = HOSTILE.replace("/", "")
    run = tmp_path / name
    fill(run, FILES)
    (run / f"{name}.mp4").write_bytes(video())
    (run / "summary.json").write_text(json.dumps({name: name, f"{name}/return": 1.0, "return": 2.0}))
    (run / "metrics.csv").write_text(f'step,"{name.replace(chr(34), chr(34) * 2)}"\n0,1\n1,2\n')
    (run / "curves.csv").write_text(context_curves().replace("regret", f'"{name.replace(chr(34), chr(34) * 2)}"'))
    (run / "rejected.jsonl").write_text(json.dumps({"code": name, "source": f"\x00\x1b{name}"}) + "\nnot json\n[1]\n")
    (run / "config.yaml").write_text(f"run: {{name: '{name}', seed: '{name}'}}\n")
    (run / "arms.json").write_text(json.dumps({name: [1, 2]}))
    keys = {name: {"support": 1, "ap": 0.5}}
    (run / "label_report.json").write_text(json.dumps({"keys": keys, "confusion": {name: [[1, 0], [0, 1]]}}))
    report.write(tmp_path / "out.html", [run], title=name)
    parser, html = parse(tmp_path / "out.html")
    assert "img" not in parser.tags
    assert "\x00" not in html
    assert "\x1b" not in html
    assert sum(name in text for text in parser.text) > 8


def test_damage_is_told_not_raised(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text('{"score": 1')
    (run / "label_report.json").write_text('{"keys": [1, 2], "calibration": 3}')
    (run / "config.yaml").write_text("a: [1\n")
    (run / "arms.json").write_text("[1]")
    (run / "curves.csv").write_bytes(b"who,x\nme,1\n\xff,\x00\n")
    (run / "metrics.csv").write_bytes(b"step,loss\n0,nan\n1,\xff\n\x00")
    (run / "empty.mp4").write_bytes(b"")
    report.write(tmp_path / "out.html", [run])
    parser, _ = parse(tmp_path / "out.html")
    text = " ".join(parser.text)
    assert "problems" in parser.sections
    for name in ("summary.json", "label_report.json", "config.yaml", "arms.json"):
        assert f"{name} " in text
    assert "1 videos left out" in text


def test_videos_stop_at_the_budget_and_recordings_are_not_play(tmp_path):
    run = fill(tmp_path / "run", ["play"])
    (run / "second.mp4").write_bytes(video())
    (run / "recording.mp4").write_bytes(video())
    (run / "recording.jsonl").write_text("{}")
    size = (run / "second.mp4").stat().st_size
    summary = report.write(tmp_path / "out.html", [run], video_megabytes=1.5 * size / 1e6)
    parser, _ = parse(tmp_path / "out.html")
    assert summary["videos"] == 1
    assert "second.mp4" in " ".join(parser.text)
    assert "recording" not in " ".join(parser.text)


def test_runs_below_a_folder_are_found_and_named(tmp_path):
    fill(tmp_path / "demo" / "a", ["results", "curves"])
    fill(tmp_path / "demo" / "b" / "c", ["curves"])
    summary = report.write(tmp_path / "out.html", [tmp_path / "demo", tmp_path / "demo" / "a"])
    parser, _ = parse(tmp_path / "out.html")
    assert summary["runs"] == 2
    assert {"demo/a · train", "demo/b/c · val"} <= {t.strip() for t in parser.text}
    with pytest.raises(DataError, match="no run found"):
        report.write(tmp_path / "out.html", [(tmp_path / "nothing").mkdir() or tmp_path / "nothing"])
    with pytest.raises(DataError, match="not a folder"):
        report.write(tmp_path / "out.html", [tmp_path / "missing"])


def test_numbers_find_what_belongs_beside_them():
    summary = {
        "policy/return": 0.7, "policy/return_low": 0.6, "policy/return_high": 0.8, "random/return": 0.1,
        "random/return_low": 0.0, "random/return_high": 0.2, "idm/button_f1": 0.5, "idm/majority_f1": 0.2,
        "idm/joint_exact": 0.3, "idm/persistence_joint_exact": 0.25, "idm/all_released_exact": 0.1, "minutes": 3,
        "policy/episodes": 8, "random/episodes": 9, "x_std": 0.1, "x": 1.0, "x_expected": 2, "alone": None,
    }  # fmt: skip
    rows = {row.what: row for row in report_results.result_rows(summary, {"alone": ">= 3"})}
    counts = ["policy/episodes", "random/episodes"]  # not merits: none is the other's baseline
    assert list(rows) == ["policy/return", "idm/button_f1", "idm/joint_exact", *counts, "x", "alone"]
    assert rows["policy/return"].spread == "[0.600, 0.800]"
    assert rows["policy/return"].baseline == (("random", "0.100"),)
    assert rows["idm/button_f1"].baseline == (("majority", "0.200"),)
    assert rows["idm/joint_exact"].baseline == (("persistence", "0.250"), ("all released", "0.100"))
    assert (rows["x"].value, rows["x"].spread, rows["x"].expected) == ("1", "± 0.100", "2")
    assert (rows["alone"].value, rows["alone"].expected) == ("–", ">= 3")


def test_a_lone_baseline_is_a_result():
    rows = report_results.result_rows({"random/return": 0.1, "null/return": 0.2})
    assert [row.what for row in rows] == ["random/return", "null/return"]


def test_long_lists_of_bare_numbers_are_folded_beside_other_runs(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "summary.json").write_text(json.dumps({f"n{i}": i for i in range(20)}))
    (tmp_path / "b" / "summary.json").write_text(json.dumps({"score": 1, "score_random": 0}))
    report.write(tmp_path / "out.html", [tmp_path / "a", tmp_path / "b"])
    assert "a: 20 more numbers" in " ".join(parse(tmp_path / "out.html")[0].text)
    report.write(tmp_path / "out.html", [tmp_path / "a"])
    assert "more numbers" not in " ".join(parse(tmp_path / "out.html")[0].text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1,234,567"), (0.123456, "0.123"), (12.345, "12.3"), (1234.5, "1,234"), (-2e-7, "-2.00e-07"),
     (float("nan"), "–"), (None, "–"), (float("inf"), "inf"), (True, "True"), ("a", "a"), (999.96, "1,000")],
)  # fmt: skip
def test_numbers_as_a_person_writes_them(value, text):
    assert page.number(value) == text


def test_smoothing_keeps_a_constant_and_its_start():
    assert np.allclose(plots.smooth(np.full(200, 3.0)), 3)
    noisy = np.random.default_rng(0).normal(5, 1, 600)
    assert plots.smooth(noisy)[300:].std() < 0.5
    assert plots.smooth(noisy)[0] == noisy[0]
    assert (plots.smooth(np.arange(10.0)) == np.arange(10)).all()  # too short to smooth


def test_interval_over_seeds():
    mean, low, high = plots.mean_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - mean == pytest.approx(4.3027 / 3**0.5, abs=1e-4)  # t(0.975, 2) * std / sqrt(n)
    assert mean - low == pytest.approx(high - mean)
    assert plots.mean_interval([4.0]) == (4, None, None)


def test_metrics_of_a_logger(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss,val/loss\n0,5,1.5,\n0,9,,2.5\n0,10,inf,\n0,1")
    assert read_metrics(path) == {"train/loss": ([5.0], [1.5]), "val/loss": ([9.0], [2.5])}


def test_the_command(tmp_path):
    cfg = OmegaConf.load(f"{CONFIGS}/report.yaml")
    cfg.run.dir = str(tmp_path / "out")
    with pytest.raises(DataError, match="no run given"):
        report.main.function(cfg)
    cfg.runs = str(fill(tmp_path / "run", ["results"]))
    summary = report.main.function(cfg)
    assert summary["report"] == str(tmp_path / "out" / "report.html")
    parse(tmp_path / "out" / "report.html")
