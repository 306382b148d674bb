"""Pictures of a sweep. Each function returns a figure, or None where there is nothing to see yet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from medreason.core.outside import drawn, prepare_pictures
from medreason.report.html import amount, short
from medreason.report.results import Setting, Trial, by_start, finished, numeric

prepare_pictures()
BEST, DONE, PRUNED = "#d55e00", "#0072b2", "#808894"  # the first two of Okabe and Ito
COLOURS = "cividis"  # dark is low, and low is better; the same to colour-blind readers
LEVELS = 8  # more distinct values than this are binned
BINS = 6
FEW = 100  # trials, up to which each is drawn in full: beyond, they would hide each other
LOOKS: dict[str, dict[str, Any]] = {  # of a curve, in the order of drawing
    "pruned": {"color": PRUNED},
    "did not finish": {"color": "#b7791f", "linestyle": ":"},
    "finished": {"color": DONE},
}


@dataclass(frozen=True)
class Binned:
    """Values sorted into cells of an axis."""

    labels: list[str]
    cells: list[int]  # of each value


def axes(figure: Figure, **names: Any) -> Any:
    axis = figure.subplots()
    tidy(axis, **names)
    return axis


def tidy(axis: Any, **names: Any) -> None:
    axis.set(**names)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def focus(axis: Any, values: Sequence[float], ends: Sequence[float], keep: float = -math.inf) -> float:
    """Cuts the axis above nine tenths of `ends`, and `keep`; returns where, infinity if nothing lies far above.

    First steps and diverged trials would else stretch it until the good ones cannot be told apart.
    """
    low, top = min(values), max(float(np.percentile(ends, 90, method="higher")), keep)
    top = max(top, float(np.median(ends)) + 0.02 * abs(low))
    if wide([low, top]):  # ends that differ tenfold are told apart by a logarithmic axis alone
        axis.set_yscale("log")
        for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            ticks(FuncFormatter(lambda value, _: short(value)))
        axis.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        return math.inf
    if max(values) <= top + 0.5 * (top - low):
        return math.inf
    axis.set_ylim(low - 0.05 * (top - low), top + 0.2 * (top - low))
    axis.set_title("larger values are cut off", loc="right", fontsize=8, color="#777777")
    return top


def draw_curves(trials: Sequence[Trial], metric: str) -> Figure | None:
    """The monitored metric over optimizer steps: pruned trials faded, the best one named."""
    shown = [trial for trial in trials if trial.curve[1]]
    if not shown:
        return None
    best = next(iter(finished(shown)), None)
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axis = axes(figure, xlabel="optimizer step", ylabel=f"{drawn(metric)} (lower is better)")
    kinds: dict[str, list[Trial]] = {}
    for trial in shown:
        if trial is not best:
            kind = trial.state if trial.state in ("finished", "pruned") else "did not finish"
            kinds.setdefault(kind, []).append(trial)
    faint = crowding(len(shown))
    for kind, look in LOOKS.items():
        if trials_of := kinds.get(kind):
            curves = [np.column_stack(trial.curve) for trial in trials_of]
            axis.add_collection(LineCollection(curves, alpha=0.6 * faint, linewidths=1, **look))
            # an invisible line bears the name: a faint one could not be read in the legend
            axis.plot([], [], label=kind, color=look["color"], linestyle=look.get("linestyle", "-"))
            if faint == 1:
                points = np.concatenate(curves)
                axis.plot(*points.T, "o", markersize=2.5, color=look["color"], alpha=0.55)
    axis.autoscale_view()
    if best is not None:
        steps, values = best.curve
        axis.plot(steps, values, color=BEST, linewidth=2.4, marker="o", markersize=4, zorder=5)
        name = f"trial {best.number}: {values[-1]:.4f}"
        axis.annotate(
            name, (steps[-1], values[-1]), (8, 0), textcoords="offset points", color=BEST, weight="bold", va="center"
        )
    every = [value for trial in shown for value in trial.curve[1]]
    focus(axis, every, [trial.curve[1][-1] for trial in shown])
    if kinds:
        axis.legend(frameon=False, fontsize=9)
    return figure


def crowding(count: int) -> float:
    """How faint one of so many marks must be, from 1 down, for people to see where most of them lie."""
    return min(1.0, max(0.15, math.sqrt(FEW / count)))


def draw_progress(trials: Sequence[Trial], metric: str) -> Figure | None:
    """The best value so far against the tokens that all trials had been trained on by then, in order of start."""
    done = finished(trials)
    if len(done) < 2 or not any(trial.tokens for trial in done):
        return None
    spent, so_far, best = 0, math.inf, []
    points = []
    for trial in by_start(trials):
        spent += trial.tokens
        if trial.state == "finished" and trial.value is not None:
            so_far = min(so_far, trial.value)
            points.append((spent, trial.value))
            best.append((spent, so_far))
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axis = axes(figure, xlabel="tokens trained on, all trials", ylabel=f"{drawn(metric)} (lower is better)")
    axis.plot(*zip(*points, strict=True), "o", color=DONE, alpha=0.6, markersize=5, label="finished trials")
    best.append((spent, so_far))
    axis.step(*zip(*best, strict=True), where="post", color=BEST, linewidth=2, label="best so far")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda count, _: amount(count)))
    axis.set_xlim(left=0)
    focus(axis, [value for _, value in points], [value for _, value in points], keep=best[0][1])
    axis.legend(frameon=False, fontsize=9)
    return figure


def wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis suits: positive, and spanning a factor of more than 10."""
    return min(values) > 0 and max(values) > 10 * min(values)


def binned(values: Sequence[float]) -> Binned:
    """Cells for a heat map's axis: the values themselves where they are few, else ranges, of equal ratio if wide."""
    levels = sorted(set(values))
    if len(levels) <= LEVELS:
        return Binned([short(level) for level in levels], [levels.index(value) for value in values])
    make = np.geomspace if wide(levels) else np.linspace
    edges = make(levels[0], levels[-1], BINS + 1)
    cells = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, BINS - 1)
    labels = [f"{short(float(f'{low:.2g}'))} to {short(float(f'{high:.2g}'))}" for low, high in pairwise(edges)]
    return Binned(labels, [int(cell) for cell in cells])


def map_settings(trials: Sequence[Trial], keys: Sequence[str]) -> tuple[str, str] | None:
    """The two swept numbers that a map is drawn of, rank and learning rate first; None with fewer than two."""
    numbers = [key for key in keys if numeric(trial.settings[key] for trial in trials if key in trial.settings)]
    first = [key for key in ("lora.r", "optim.lr") if key in numbers]
    chosen = first + [key for key in numbers if key not in (*first, "seed")]
    return (chosen[0], chosen[1]) if len(chosen) > 1 else None


def draw_map(trials: Sequence[Trial], keys: Sequence[str], metric: str) -> Figure | None:
    """Two settings against each other: cells where a few values of each were tried, else a point a trial."""
    chosen = map_settings(trials, keys)
    tried = [trial for trial in trials if chosen and all(key in trial.settings for key in chosen)]
    if chosen is None or not any(trial in tried for trial in finished(trials)):
        return None
    sampled = any(continuous([float(trial.settings[key]) for trial in tried]) for key in chosen)
    return (draw_points if sampled else draw_heat)(tried, chosen, metric)


def continuous(values: Sequence[float]) -> bool:
    """Whether values were sampled from a range: too many for cells, or hardly any of them tried twice."""
    levels = len(set(values))
    return levels > LEVELS or (levels > 3 and levels > 0.6 * len(values))


def draw_points(tried: Sequence[Trial], chosen: tuple[str, str], metric: str) -> Figure:
    """A point a trial where its two settings meet, coloured by its value; crosses are those without a final one."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axis = axes(figure)
    done = finished(tried)
    ends = [trial.value for trial in done if trial.value is not None]
    low, top = min(ends), float(np.percentile(ends, 80) if len(ends) > 4 else max(ends))  # diverged trials aside
    scale = Normalize(low, top, clip=True)
    across, up = ([float(trial.settings[key]) for trial in tried] for key in reversed(chosen))
    number_axis(axis, "x", across)
    number_axis(axis, "y", up)
    where = {trial.folder: place for trial, place in zip(tried, zip(across, up, strict=True), strict=True)}
    places, faint = {trial.folder: where[trial.folder] for trial in reversed(done)}, crowding(len(tried))
    for kind, marker in (("pruned", "x"), ("not finished", "+")):
        points = [
            where[t.folder] for t in tried
            if t.folder not in places and (t.state == "pruned") == (kind == "pruned")
        ]  # fmt: skip
        if points:
            axis.plot(
                *zip(*points, strict=True), marker, color=PRUNED, markersize=9 * faint**0.5,
                markeredgewidth=2 * faint**0.5, alpha=max(0.4, faint), label=kind,
            )  # fmt: skip
    several = top > low
    drawn_points = axis.scatter(  # the best on top
        *zip(*places.values(), strict=True), s=110 * faint, c=ends[::-1] if several else DONE, edgecolors="#222222",
        linewidths=0.8 * faint, zorder=3, label="finished", **({"cmap": COLOURS, "norm": scale} if several else {}),
    )  # fmt: skip
    best = done[0]
    axis.plot(
        *where[best.folder], "o", markersize=17, markerfacecolor="none", color=BEST, markeredgewidth=2.5, zorder=4
    )
    x, y = where[best.folder]
    beyond = axis.transData.transform((x, y))[0] > axis.transAxes.transform((0.7, 0))[0]
    axis.annotate(
        f"trial {best.number}: {best.value:.4f}", (x, y), (-14 if beyond else 14, 10), textcoords="offset points",
        color=BEST, weight="bold", fontsize=12, ha="right" if beyond else "left", zorder=5,
    )  # fmt: skip
    axis.set_xlabel(drawn(chosen[1]), fontsize=12)
    axis.set_ylabel(drawn(chosen[0]), fontsize=12)
    if several:  # a single value has no scale
        bar = figure.colorbar(drawn_points, extend="max" if max(ends) > top else "neither")
        bar.set_label(drawn(metric), fontsize=12)
    if len(tried) > len(done):
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=11)
    return figure


def number_axis(axis: Any, name: str, values: Sequence[float]) -> None:
    """A logarithmic axis where values span enough, with a tick at each value where they are few."""
    levels, line = sorted(set(values)), axis.xaxis if name == "x" else axis.yaxis
    few = len(levels) <= LEVELS and not continuous(values)
    log = wide(levels) or (few and min(levels) > 0 and max(levels) >= 4 * min(levels))
    axis.set(**{f"{name}scale": "log" if log else "linear"})
    margin = 0.08 * (math.log(levels[-1] / levels[0]) if log else levels[-1] - levels[0]) or 0.5
    ends = (levels[0] / math.exp(margin), levels[-1] * math.exp(margin)) if log else (
        levels[0] - margin, levels[-1] + margin)  # fmt: skip
    axis.set(**{f"{name}lim": ends})
    if few:
        places = [math.log(level) for level in levels] if log else levels
        line.set_ticks(levels, spaced([short(level) for level in levels], places))
        line.set_minor_locator(NullLocator())
    else:
        line.set_major_formatter(FuncFormatter(lambda value, _: short(float(value))))
        if log:
            line.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        line.set_minor_formatter(NullFormatter())
    axis.tick_params(axis=name, labelsize=11)


def draw_heat(tried: Sequence[Trial], chosen: tuple[str, str], metric: str) -> Figure:
    """Best finished value in each cell of two settings; below it, how many trials fell there."""
    rows, columns = (binned([float(trial.settings[key]) for trial in tried]) for key in chosen)
    best = np.full((len(rows.labels), len(columns.labels)), np.nan)
    counts = np.zeros(best.shape, int)
    for trial, row, column in zip(tried, rows.cells, columns.cells, strict=True):
        counts[row, column] += 1
        if trial.state == "finished" and trial.value is not None:
            best[row, column] = np.fmin(best[row, column], trial.value)
    figure = Figure(figsize=(max(5.5, 2.6 + 1.25 * best.shape[1]), 1.6 + 0.75 * best.shape[0]), layout="constrained")
    axis = figure.subplots()
    reached = best[np.isfinite(best)]
    low = float(reached.min())
    top = float(np.percentile(reached, 80) if len(reached) > 4 else reached.max())  # diverged cells aside
    image = axis.imshow(best, cmap=COLOURS, aspect="auto", origin="lower", vmin=low, vmax=top)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            value = best[row, column]
            dark = np.isfinite(value) and value <= low + 0.55 * (top - low)
            colour = "white" if dark else "#222222"
            text = f"{value:.4f}" if np.isfinite(value) else "none finished"
            axis.text(column, row, text, ha="center", va="bottom", color=colour, fontsize=12 if "." in text else 10)
            unit = "trial" if count == 1 else "trials"
            axis.text(column, row - 0.08, f"{count} {unit}", ha="center", va="top", color=colour, fontsize=9)
    axis.set_xticks(range(len(columns.labels)), columns.labels, fontsize=11)
    axis.set_yticks(range(len(rows.labels)), rows.labels, fontsize=11)
    axis.set_ylabel(drawn(chosen[0]), fontsize=12)
    axis.set_xlabel(drawn(chosen[1]), fontsize=12)
    axis.spines[:].set_visible(False)
    if top > low:  # a single value has no scale
        figure.colorbar(image, label=f"best {drawn(metric)}", extend="max" if reached.max() > top else "neither")
    return figure


def draw_slices(trials: Sequence[Trial], keys: Sequence[str], metric: str) -> Figure | None:
    """A panel for each setting: the value against it; pruned trials hollow, at the last value they reported."""
    shown = [t for t in trials if t.value is not None and t.state in ("finished", "pruned")]
    best = next(iter(finished(shown)), None)
    if not keys or best is None or best.value is None:
        return None
    width = min(3, len(keys))
    height = math.ceil(len(keys) / width)
    figure = Figure(figsize=(max(4.5, 3.4 * width), 3.2 * height), layout="constrained")
    panels = figure.subplots(height, width, sharey=True, squeeze=False).flatten().tolist()
    values = [trial.value for trial in shown if trial.value is not None]
    top = focus(panels[0], values, values)
    panels[0].set_title("", loc="right")  # triangles say it
    faint = crowding(len(shown))
    for key, panel in zip(keys, panels, strict=False):
        tidy(panel, xlabel=drawn(key))
        here = [trial for trial in shown if key in trial.settings]
        levels = place_ticks(panel, [trial.settings[key] for trial in here])
        looks: dict[tuple[bool, bool], list[tuple[Any, float]]] = {}
        for trial in here:
            at, value = levels.get(trial.settings[key], trial.settings[key]), trial.value or 0.0
            beyond = value > top
            if trial is best:
                panel.plot(at, value, "o", color=BEST, markersize=8, zorder=5)
            else:
                looks.setdefault((trial.state == "pruned", beyond), []).append((at, top if beyond else value))
        for (hollow, beyond), points in looks.items():
            colour = PRUNED if hollow else DONE
            panel.plot(
                *zip(*points, strict=True), "^" if beyond else "o", color=colour, markersize=5.5 * faint**0.5,
                markerfacecolor="none" if hollow else colour, alpha=0.75 * faint, zorder=2,
            )  # fmt: skip
    for panel in panels[len(keys) :]:
        panel.set_visible(False)
    for row in figure.axes[::width]:
        row.set_ylabel(drawn(metric))
    return figure


def place_ticks(axis: Any, values: Sequence[Setting]) -> dict[Setting, Setting]:
    """Sets an axis up for values; returns where each one stands, for those that are no numbers."""
    levels = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    if not levels:
        return {}
    if any(isinstance(level, str) for level in levels):
        texts = [drawn(short(level)) for level in levels]
        axis.set_xticks(range(len(levels)), texts, rotation=20 if max(map(len, texts)) > 8 else 0)
        axis.set_xlim(-0.5, len(levels) - 0.5)
        return {level: place for place, level in enumerate(levels)}
    numbers = [float(level) for level in levels]
    few = len(levels) <= LEVELS
    log = wide(numbers) or (few and min(numbers) > 0 and max(numbers) >= 4 * min(numbers))
    if log:
        axis.set_xscale("log")
    if few:
        places = [math.log(number) for number in numbers] if log else numbers
        axis.set_xticks(numbers, spaced([short(level) for level in levels], places), fontsize=9)
        axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    return {}


def spaced(labels: Sequence[str], places: Sequence[float]) -> list[str]:
    """Labels, in order of their places, without those that would run into the one before."""
    room, last, shown = 0.03 * (places[-1] - places[0]), -math.inf, []
    for label, place in zip(labels, places, strict=True):
        fits = place - last >= room * len(label)
        shown.append(label if fits else "")
        last = place if fits else last
    return shown


def draw_importance(shares: Mapping[str, float]) -> Figure | None:
    """A bar for each setting, the longest on top."""
    if not shares:
        return None
    ranked = sorted(shares.items(), key=lambda item: item[1])
    figure = Figure(figsize=(7, 0.9 + 0.42 * len(ranked)), layout="constrained")
    axis = axes(figure, xlabel="share of the importance", xlim=(0, 1.08))
    axis.barh([drawn(key) for key, _ in ranked], [share for _, share in ranked], color=DONE, height=0.6)
    for place, (_, share) in enumerate(ranked):
        axis.text(share + 0.01, place, f"{share:.0%}", va="center", fontsize=9)
    return figure
