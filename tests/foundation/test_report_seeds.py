"""What a report says of several seeds together."""

import json

import numpy as np

from foundation import plots, report, report_seeds, report_worlds


def write(folder, regrets):
    """Runs arm/seed<i> of which each has one number and one curve of two points."""
    for i, regret in enumerate(regrets):
        run = folder / "arm" / f"seed{i}"
        run.mkdir(parents=True)
        summary = {"evaluate/regret": regret, "evaluate/regret_sem": 0.1, "steps": 10, "name": "x"}
        (run / "summary.json").write_text(json.dumps(summary))
        (run / "curves.csv").write_text(
            f"figure,who,x,mean,sem\nf,policy,1,{regret},0.5\nf,policy,2,{2 * regret},0.5\n"
        )


def test_numbers_of_seeds_are_averaged():
    rows = report_seeds.rows_of([{"a": value, "a_sem": 1.0, "steps": 5, "b": "text"} for value in (1.0, 2.0, 3.0)])
    mean, low, high = plots.mean_interval([1.0, 2.0, 3.0])
    assert (mean, round(low, 2), round(high, 2)) == (2.0, -0.48, 4.48)
    assert rows == [("a", "2", "[-0.484, 4.48]", "1  2  3")]  # settings and per-run errors are no results


def test_a_number_that_one_seed_lacks_has_no_mean():
    assert report_seeds.rows_of([{"a": 1.0}, {"b": 2.0}]) == []


def test_families_are_names_without_their_seed():
    assert report_seeds.family("out/arm/seed12/played") == report_seeds.family("out/arm/seed3/played")
    assert report_seeds.family("out/seeded/run") == "out/seeded/run"


def test_lines_for_a_terminal(tmp_path):
    write(tmp_path, (1.0, 2.0, 3.0))
    runs = report.discover([tmp_path])
    (line,) = report_seeds.lines(runs, ["evaluate/regret", "unknown"]).splitlines()
    assert line.endswith("arm/seed * evaluate/regret  2  [-0.484, 4.48]  of 1  2  3")
    assert report_seeds.lines(runs[:1], ["evaluate/regret"]).endswith("evaluate/regret  1  of 1")
    assert report_seeds.lines(runs, []) == ""


def test_curves_of_seeds_become_one_with_the_error_between_them():
    curves = [
        {"f": {"policy": [(1, value, 9.0), (2, 1.0, 9.0)] + [(3, 0.0, 9.0)] * i}} for i, value in enumerate((1.0, 3.0))
    ]
    x, mean, sem = report_worlds.merged(curves)["f"]["policy"]
    np.testing.assert_array_equal(x, [1, 2])  # what both have
    np.testing.assert_allclose(mean, [2.0, 1.0])
    np.testing.assert_allclose(sem, [1.0, 0.0])
    x, mean, sem = report_worlds.merged(curves[:1])["f"]["policy"]
    np.testing.assert_allclose(sem, [9.0, 9.0])  # of one seed: over tasks


def test_many_seeds_are_one_figure_and_one_table(tmp_path):
    write(tmp_path, [10.0, 11.0, 12.0])
    report.write(tmp_path / "report.html", [tmp_path])
    page = (tmp_path / "report.html").read_text()
    assert 'id="seeds"' in page and "3 runs" in page
    context = page[page.index('<section id="context"') :]
    assert context[: context.index("</section>")].count("<svg") == 1
