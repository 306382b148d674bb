"""A run's loss, held-out loss, learning rate and gradient norm by optimizer step, in one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from medreason.core.disk import whole_file
from medreason.core.outside import drawn, prepare_pictures
from medreason.core.recorded import finite, mapping
from medreason.core.run_directory import read_metrics, series
from medreason.report.html import short

# of Okabe and Ito, told apart by colour-blind readers; widths and markers differ, too
TRAIN, HELD_OUT, RATE, NORM = "#56b4e9", "#d55e00", "#009e73", "#cc79a7"
TEXT = 12  # points, to be read at half the size


def curves(
    rows: Sequence[Mapping[str, float]], name: str, best: float | None, resumed: Sequence[float]
) -> Figure | None:
    """Losses above, learning rate and gradient norm below; None where no loss was logged.

    `best` is the optimizer step whose weights RUN/adapter holds, `resumed` those after which the run went on.
    """
    steps, held_out = series(rows, "val/loss")
    trained = series(rows, "train/loss")
    if not (held_out or trained[1]):
        return None
    prepare_pictures()
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    losses.plot(*trained, color=TRAIN, label="train, one step")
    losses.plot(steps, held_out, color=HELD_OUT, marker="o", markersize=5, linewidth=2, label="held out")
    if best is not None:
        mark_best(losses, best, dict(zip(steps, held_out, strict=True)).get(best))
    for place, step in enumerate(resumed):
        for axis in (losses, rates):
            label = "resumed here" if axis is losses and place == 0 else None
            axis.axvline(step, color="#666666", linestyle=(0, (2, 2)), linewidth=1.5, zorder=1, label=label)
    losses.set_ylabel("loss, nats per token", fontsize=TEXT)
    losses.set_title(drawn(name), fontsize=TEXT + 1)
    losses.legend(frameon=False, fontsize=TEXT)
    rates.plot(*series(rows, "train/lr"), color=RATE, linewidth=2.5)
    rates.set_xlabel("optimizer step", fontsize=TEXT)
    rates.set_ylabel("learning rate\n(thick)", color=RATE, fontsize=TEXT)
    rates.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: short(float(rate))))
    norms = rates.twinx()
    norms.plot(*series(rows, "train/grad_norm"), color=NORM, linewidth=0.8)
    norms.set_ylabel("gradient norm\n(thin)", color=NORM, fontsize=TEXT)
    for axis in (losses, rates, norms):
        axis.spines["top"].set_visible(False)
        axis.tick_params(labelsize=TEXT - 1)
    for axis in (losses, rates):
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    return figure


def mark_best(axis: Any, step: float, loss: float | None) -> None:
    """A star where the held-out loss of the step is known, else a line at the step."""
    if loss is None:
        axis.axvline(step, color="black", linewidth=1.5, label=f"in adapter/: step {step:,.0f}")
        return
    label = f"in adapter/: step {step:,.0f}, {loss:.3f}"
    axis.plot([step], [loss], "*", color="black", markersize=15, zorder=6, linestyle="none", label=label)


# of Okabe and Ito, beginning with those that lie furthest apart; markers tell them apart in grey
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "os^Dv*P"


def beside(runs: Sequence[tuple[str, Sequence[Mapping[str, float]]]]) -> Figure | None:
    """Held-out and training loss of several runs, each a name and its metrics; None where no loss was logged."""
    prepare_pictures()
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axis = figure.subplots()
    for place, (name, rows) in enumerate(runs):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        trained, held_out = series(rows, "train/loss"), series(rows, "val/loss")
        if not (trained[1] or held_out[1]):
            continue
        axis.plot(*trained, color=colour, linewidth=0.8, alpha=0.6)
        axis.plot(*held_out, color=colour, marker=marker, markersize=6, linewidth=2, label=drawn(name))
    axis.set_xlabel("optimizer step", fontsize=TEXT)
    axis.set_ylabel("loss, nats per token", fontsize=TEXT)
    axis.legend(frameon=False, fontsize=TEXT)
    axis.tick_params(labelsize=TEXT - 1)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    return figure if axis.lines else None


def curves_of(run: Path, record: Mapping[str, Any]) -> Figure | None:
    """The curves of a run directory; `record` is what its run.json holds, or will hold."""
    told = record.get("resumed_at")
    steps = [step for each in told if (step := finite(each)) is not None] if isinstance(told, list) else []
    best = finite(mapping(record.get("results")).get("adapter_step"))
    return curves(read_metrics(run / "metrics.csv"), run.resolve().name, best, steps)


def draw_curves(run: Path, record: Mapping[str, Any]) -> None:
    """RUN/curves.png; none where no loss was logged."""
    figure = curves_of(run, record)
    if figure is not None:
        with whole_file(run / "curves.png") as draft:
            figure.savefig(draft, dpi=120)
