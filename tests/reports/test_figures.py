from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hemlearn.reports.figures import Curve, confusion_figure, learning_curves, pr_figure, reliability_figure, roc_figure

NAN = float("nan")


def curve(name="model", n=80, seed=0, **more):
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 2).astype(float)
    return Curve(name, y, np.clip(0.4 * y + 0.6 * rng.random(n), 0, 1), 0.91, 0.85, 0.95, **more)


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_roc_shows_interval_operating_point_and_equal_axes(tmp_path):
    figure = roc_figure([curve(threshold=0.5)])
    axes = figure.axes[0]
    assert legend(axes) == ["model: AUROC 0.910 (0.850-0.950)"]
    assert axes.get_aspect() == 1
    dots = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(dots) == 1
    c = curve()
    called = c.p >= 0.5
    assert dots[0].get_xdata()[0] == pytest.approx(called[c.y == 0].mean())
    assert dots[0].get_ydata()[0] == pytest.approx(called[c.y == 1].mean())
    figure.savefig(tmp_path / "roc.png")
    assert (tmp_path / "roc.png").stat().st_size > 5000


@pytest.mark.parametrize("draw", [roc_figure, pr_figure, reliability_figure])
def test_long_legends_stay_inside_the_picture(draw):
    names = [f"backbone=tf_efficientnet_lite{i}, augmentation=geometric_intensity, pretrained=true" for i in range(8)]
    figure = draw(
        {"any": [curve(n, seed=i) for i, n in enumerate(names)], "epidural": [curve()]}, title="title", note="note"
    )
    figure.canvas.draw()
    width, height = figure.bbox.width, figure.bbox.height
    for axes in figure.axes:
        box = axes.get_legend().get_window_extent()
        assert box.y0 >= 0
        assert box.x0 >= 0
        assert box.x1 <= width
        square = axes.get_window_extent()
        assert square.width == pytest.approx(square.height, rel=0.01)
        assert box.y1 < square.y0
        assert square.y1 < height


def test_long_notes_stay_inside_the_picture():
    note = "shaded: pointwise 95 % band by resampling patients, of the best group and the baseline"
    figure = roc_figure([curve()], note=note)
    figure.canvas.draw()
    (box,) = (text.get_window_extent() for text in figure.texts)
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_undefined_curves_say_so():
    empty = Curve("none", np.zeros(20), np.linspace(0, 1, 20))
    for draw in (roc_figure, pr_figure):
        figure = draw([empty, curve()])
        assert "undefined (one class, n = 20)" in legend(figure.axes[0])[0]
        figure.canvas.draw()


def test_pr_ends_at_the_prevalence():
    axes = pr_figure([curve()]).axes[0]
    x, y = axes.lines[-1].get_data()
    assert (x[0], x[-1], y[-1]) == (0, 1, 0.5)


def test_reliability_of_calibrated_scores_lies_on_the_diagonal():
    rng = np.random.default_rng(0)
    p = rng.random(20000)
    axes = reliability_figure([Curve("c", (rng.random(20000) < p).astype(float), p)]).axes[0]
    line = next(line for line in axes.lines if line.get_marker() == "o")
    assert len(line.get_xdata()) == 10
    np.testing.assert_allclose(line.get_xdata(), line.get_ydata(), atol=0.04)


def test_confusion_prints_counts_and_row_shares():
    texts = [t.get_text() for t in confusion_figure({"": np.array([[90, 10], [0, 0]])}, ["no", "yes"]).axes[0].texts]
    assert texts == ["90\n90.0 %", "10\n10.0 %", "0\n0.0 %", "0\n0.0 %"]
    many = confusion_figure({c: np.eye(3, dtype=int) for c in "abcd"}, ["long class name", "b", "c"])
    assert [axes.get_title() for axes in many.axes if axes.get_visible()] == list("abcd")
    many.canvas.draw()


def test_learning_curves_join_rows_of_an_epoch_and_mark_the_best():
    rows = []
    for epoch in range(6):
        rows.append({"epoch": epoch, "train/loss": 1 / (epoch + 1)})
        rows.append({"epoch": epoch, "val/loss": abs(epoch - 3) + 0.1, "val/auroc": 0.5 + epoch / 20})
    figure = learning_curves(pd.DataFrame(rows), monitor="loss")
    left, right = figure.axes
    assert legend(left) == ["train/loss", "val/loss", "best val/loss (epoch 3)"]
    assert legend(right) == ["val/auroc"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), 1 / np.arange(1, 7))
    figure.canvas.draw()


def test_learning_curves_without_metrics_or_history():
    assert len(learning_curves(pd.DataFrame({"epoch": [0, 1], "train/loss": [1.0, NAN]})).axes) == 1
    learning_curves(pd.DataFrame({"epoch": [], "train/loss": []}), monitor="auroc").canvas.draw()
