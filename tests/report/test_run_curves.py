import json
from pathlib import Path

import torch
from matplotlib.figure import Figure

from medreason.core.run_directory import resumed_at
from medreason.report.run_curves import curves, draw_curves

ROWS = [
    {"step": 0, "train/loss": 2.0, "train/lr": 1e-4, "train/grad_norm": 1.0},
    {"step": 10, "train/loss": 1.5, "val/loss": 1.6},
    {"step": 20, "train/loss": 1.0, "val/loss": 1.7},
]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_a_star_marks_the_step_whose_weights_the_adapter_holds() -> None:
    figure = curves(ROWS, "run", 10, [])
    assert figure is not None
    (star,) = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([10], [1.6])
    assert "in adapter/: step 10, 1.600" in legend(figure)


def test_a_best_step_without_a_loss_is_a_line_and_none_is_nothing() -> None:
    figure = curves(ROWS, "run", 15, [])
    assert figure is not None and "in adapter/: step 15" in legend(figure)
    unmarked = curves(ROWS, "run", None, [])
    assert unmarked is not None and legend(unmarked) == ["train, one step", "held out"]


def test_every_step_after_which_a_run_went_on_is_marked_and_named_once() -> None:
    figure = curves(ROWS, "run", None, [5, 12])
    assert figure is not None and legend(figure).count("resumed here") == 1
    for axis in figure.axes[:2]:
        dotted = [line.get_xdata()[0] for line in axis.lines if line.get_color() == "#666666"]
        assert dotted == [5, 12]


def test_a_run_without_any_loss_has_no_picture(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n", encoding="utf-8")
    draw_curves(tmp_path, {"results": "odd", "resumed_at": "odd"})
    assert not (tmp_path / "curves.png").exists()


def test_a_run_that_goes_on_again_knows_of_each_time_and_forgets_those_it_went_back_behind(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    torch.save({"global_step": 30}, checkpoint)
    assert resumed_at(None) == [] and resumed_at(checkpoint) == [30]
    (tmp_path / "run.json").write_text(json.dumps({"resumed_at": [10, 30, 40, "x"]}), encoding="utf-8")
    assert resumed_at(checkpoint) == [10, 30]
