"""python -m medreason.report DIR: a run, or a sweep of runs, as one page, DIR/report.html, read from files alone.

With several runs (report A B) a page of how they differ, A/comparison.html. `last` and `best` name runs as in run=.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from medreason.config import ConfigError
from medreason.core.disk import describe_full, disk_full, whole_file
from medreason.core.named_runs import NAMES, find_run
from medreason.core.outside import one_line
from medreason.core.overrides import command_line, override
from medreason.core.progress import speak_safely
from medreason.core.recorded import finite, mapping, read_mapping
from medreason.core.what_next import from_here
from medreason.report.comparison import comparison_page, read_compared, summary, tested
from medreason.report.html import (
    amount,
    command_block,
    duration,
    facts_table,
    folded,
    page,
    paragraph,
    picture,
    prose,
    section,
    short,
    table,
    tiles,
)
from medreason.report.results import (
    Trial,
    by_start,
    finished,
    is_run,
    is_sweep,
    monitored,
    read_sweep,
    setting,
    varied,
)
from medreason.report.run_page import run_page
from medreason.report.sweep_statistics import (
    BEST_SHARE,
    LEAST_FINISHED,
    Repeats,
    compare,
    importance,
    interval,
    repeats,
    saved_by_pruning,
)

MANY_ENDINGS = 20  # rows of a table, beyond which it is no overview


def trial_cells(trial: Trial, keys: Sequence[str]) -> list[str]:
    """A table's row: the run's folder, its value, settings and cost."""
    link = f'<a href="{trial.folder.name}/">{trial.number}</a>'
    value = "" if trial.value is None else f"{trial.value:.4f}"
    settings = [escape(short(trial.settings[key])) if key in trial.settings else "" for key in keys]
    cost = [f"{trial.steps:,}", amount(trial.tokens) if trial.tokens else "", duration(trial.seconds)]
    return [link, value, *settings, *cost]


def counted(trials: Sequence[Trial]) -> str:
    """How many ended how: 20 finished, 8 pruned."""
    counts = Counter(trial.state for trial in trials)
    order = ("finished", "pruned", "failed", "interrupted", "running", "unknown")
    return ", ".join(f"{counts[state]} {state}" for state in order if counts[state])


def endings(trials: Sequence[Trial]) -> str:
    """Trials that did not come to an end of their own, and those that were interrupted on the way, with reasons.

    Where they are many, how often each reason was given stands first, and they themselves are folded away.
    """
    told = [
        trial
        for trial in trials
        if trial.state not in ("finished", "pruned") or trial.died or (trial.state == "finished" and trial.reason)
    ]
    rows = [
        (
            f'<a href="{trial.folder.name}/">{trial.number}</a>',
            trial.state,
            prose(trial.reason),
            prose("; ".join(trial.died)),
        )
        for trial in told
    ]
    each = table(("trial", "state", "reason", "interruptions survived"), rows)
    if len(rows) <= MANY_ENDINGS:
        return each
    counts = Counter((trial.state, trial.reason) for trial in told)
    often = [(state, prose(reason), str(count)) for (state, reason), count in counts.most_common(MANY_ENDINGS)]
    return table(("state", "reason", "trials"), often) + folded(f"all {len(rows)} of them", each)


def cost(trials: Sequence[Trial]) -> list[str]:
    """Where tokens and time went, and what pruning saved."""
    tokens, seconds = sum(t.tokens for t in trials), sum(t.seconds for t in trials)

    def share(part: float, whole: float) -> str:
        return f" ({part / whole:.0%})" if whole else ""

    rows = []
    for state in dict.fromkeys(trial.state for trial in by_start(trials)):
        some = [trial for trial in trials if trial.state == state]
        spent, took = sum(t.tokens for t in some), sum(t.seconds for t in some)
        cells = amount(spent) + share(spent, tokens), duration(took) + share(took, seconds)
        rows.append((state, str(len(some)), *cells))
    rows.append(("all", str(len(trials)), amount(tokens), duration(seconds)))
    return [table(("state", "trials", "tokens", "time"), rows), pruning(trials)]


def pruning(trials: Sequence[Trial]) -> str:
    """What pruning saved, in a sentence; nothing without both pruned and finished trials."""
    saved = saved_by_pruning(trials)
    if saved is None:
        return ""
    stopped = sum(trial.state == "pruned" for trial in trials)
    unpruned = saved + sum(trial.tokens for trial in trials)
    return paragraph(
        f"Pruning stopped {stopped} of {len(trials)} trials early and saved about {amount(saved)} tokens, "
        f"{saved / unpruned:.0%} of what the sweep would have taken with those trials as long as a finished one."
    )


def noise(found: Sequence[Repeats], sweep: Path) -> str:
    """How sure the order of the best configurations is: means and intervals over seeds, or how to get them."""
    if not found:
        return paragraph(
            "Not measured: each configuration ran once, so small differences may be chance. To measure it:"
        ) + command_block(["sweeps=confirm_best", override("hydra.sweeper.sweep", sweep)])
    keys = list(dict.fromkeys(key for each in found for key in each.settings))
    rows = []
    for each in found:
        mean, spread, runs = "", "", str(len(each.by_seed))
        if each.by_seed:
            middle, half = interval(each.by_seed.values())
            mean = f"{middle:.4f}"
            spread = f"{middle - half:.4f} to {middle + half:.4f}" if half < float("inf") else "needs two runs"
        once = "" if each.searched_value is None else f"{each.searched_value:.4f}"
        settings = [escape(short(each.settings[key])) if key in each.settings else "" for key in keys]
        rows.append([*settings, mean, spread, runs + (f", {each.lost} lost" if each.lost else ""), once])
    ready = [each for each in found if each.by_seed]
    return (
        table((*keys, "mean", "95% interval", "n (seeds)", "in the search"), rows, 0)
        + (paragraph(compare(ready[0], ready[1])) if len(ready) > 1 else "")
        + paragraph(
            "Student's t over finished runs, not corrected for how many configurations are compared. The search's own "
            "value is the lowest of many, so it tends to be better than the mean over fresh seeds."
        )
    )


def searched(sweep: Path) -> str:
    """What an Optuna sweep searched and what all its trials share, folded; nothing for any other."""
    record, _ = read_mapping(sweep / "sweep.json")
    tables = {name: facts_table(mapping(record.get(name))) for name in ("space", "shared")}
    parts = [paragraph(f"{name.capitalize()}:") + rows for name, rows in tables.items() if rows]
    return folded("what was searched, and what all trials share", *parts)


def rate_then_rank(sweep: Path, trials: Sequence[Trial]) -> str:
    """The two stages of sweeps=lr_then_rank: what the first found, what each rank made of it; nothing for others."""
    rank = finite(read_mapping(sweep / "sweep.json")[0].get("rank"))
    ranked = [trial for trial in trials if "lora.r" in trial.settings]
    first = [trial for trial in ranked if trial.settings["lora.r"] == rank]
    others = [trial for trial in ranked if trial.settings["lora.r"] != rank]
    if rank is None or not first:
        return ""
    best = next(iter(finished(first)), None)
    if best is None or best.value is None:
        return paragraph(f"Learning rates were searched at lora.r={rank:g}; none of {len(first)} trials has finished.")
    found = describe(best, without="lora.r")
    told = f"The best of {len(first)} trials at lora.r={rank:g} is trial {best.number}, {found}"
    if not others:
        return paragraph(f"{told}; other ranks have not been tried with it yet.")
    ranked = sorted([best, *others], key=lambda each: float(each.settings["lora.r"]))
    rows = []
    for trial in ranked:
        link, value, *_ = trial_cells(trial, ())
        ended = value if trial.state == "finished" else f"{value} ({trial.state})"
        # the last value of a trial that has not finished is one of an earlier step
        gain = "" if trial is best or ended != value else f"{(trial.value or 0.0) - best.value:+.4f}"
        rows.append((link, short(trial.settings["lora.r"]), ended, gain))
    return paragraph(f"{told}; the other ranks were then tried with it.") + table(
        ("trial", "lora.r", "value", f"against lora.r={rank:g}"), rows, ranked.index(finished(ranked)[0])
    )


def headline(trials: Sequence[Trial], metric: str) -> list[tuple[str, str]]:
    """A sweep in four numbers."""
    best = finished(trials)[:1]
    return [
        (counted(trials), f"{len(trials)} trial{'s' if len(trials) > 1 else ''}"),
        ("tokens", amount(sum(trial.tokens for trial in trials))),
        ("time of all trials", duration(sum(trial.seconds for trial in trials))),
        *((f"best {metric}, trial {trial.number}", f"{trial.value:.4f}") for trial in best),
    ]


def sweep_page(sweep: Path, trials: Sequence[Trial], top: int) -> str:
    """The page of a sweep; its pictures are written on the way."""
    metric = next((monitored(c) for t in trials if (c := read_mapping(t.folder / "config.yaml")[0])), "val/loss")
    done, swept = finished(trials), list(dict.fromkeys(key for trial in trials for key in trial.settings))
    header = ("trial", metric, *swept, "steps", "tokens", "time")
    every = [[*trial_cells(trial, swept), trial.state, prose(trial.reason)] for trial in trials]
    confirmed = read_sweep(sweep / "confirmed") or trials  # a folder of confirmations is a sweep of its own, too
    course, settings = sweep_pictures(trials, metric, sweep / "report")
    return page(
        f"Sweep {sweep.resolve().name}",
        [
            f"<h1>Sweep {escape(sweep.resolve().name)}</h1>",
            tiles(headline(trials, metric)),
            section("Repeat the best trial", repeat(done[0])) if done else paragraph("No trial has finished yet."),
            section(
                "Best trials",
                table(header, [trial_cells(trial, swept) for trial in done[:top]], 0),
                folded("every trial", table((*header, "state", "reason"), every)),
                searched(sweep),
            ),
            section("Learning rate, then rank", rate_then_rank(sweep, trials)),
            section("Course", *course),
            section("Settings", *settings),
            section("Noise", noise(repeats(confirmed, trials), sweep)),
            section("Cost", *cost(trials)),
            section("Failures and interruptions", endings(trials) or paragraph("None.")),
        ],
    )


def repeat(trial: Trial) -> str:
    """The command that trains a trial again."""
    if not trial.overrides:
        return paragraph("Its files do not tell which overrides it was given.")
    return command_block(trial.overrides)


def sweep_pictures(trials: Sequence[Trial], metric: str, folder: Path) -> tuple[list[str], list[str]]:
    """A sweep's course and its settings, drawn; the pictures are written to the folder, too."""
    from medreason.report import plots  # matplotlib is slow to import, and --help needs none

    keys, shares, done = varied(trials), importance(trials), len(finished(trials))
    course = [
        picture(plots.draw_curves(trials, metric), folder, "curves", f"{metric} while each trial trained."),
        picture(
            plots.draw_progress(trials, metric), folder, "progress",
            "What the search had found by how many tokens, trials in order of start.",
        ),
    ]  # fmt: skip
    settings = [
        picture(
            plots.draw_map(trials, keys, metric), folder, "map",
            f"{metric} where two settings meet: the best of the trials in a cell, or a point a trial; dark is low.",
        ),
        picture(
            plots.draw_slices(trials, keys, metric), folder, "slices",
            f"{metric} by setting, a point a trial: orange the best, hollow a pruned one at its last value, triangles "
            "beyond the axis.",
        ),
        picture(
            plots.draw_importance(shares), folder, "importance",
            f"Which settings decide whether a trial is among the best {BEST_SHARE:.0%} (PED-ANOVA; pruned trials "
            f"count as not among them). {done} finished trials: with so few, take it as a hint.",
        ),
    ]  # fmt: skip
    if not shares and len(keys) > 1:
        settings.append(paragraph(f"Importance is estimated from {LEAST_FINISHED} finished trials on."))
    return course, settings


def write_report(folder: Path, top: int = 10) -> list[str]:
    """Writes FOLDER/report.html; returns the lines to say. Raises ConfigError where there is nothing to report on."""
    if not folder.is_dir():
        raise ConfigError("no such folder")
    sweep = is_sweep(folder)
    if not sweep and not is_run(folder):
        raise ConfigError("neither a run nor a sweep; name a folder that medreason.train has written")
    trials = read_sweep(folder) if sweep else []
    if sweep and not trials:
        raise ConfigError("a sweep without any trial yet")
    for old in (folder / "report").glob("*.png"):
        old.unlink()  # a picture that is not drawn any more would pass for a new one
    path = folder / "report.html"
    text = sweep_page(folder, trials, top) if sweep else run_page(folder)
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="replace")
    if not sweep:
        return [str(path)]
    best = [f"best: trial {t.number}, {t.value:.4f}, {describe(t)}" for t in finished(trials)[:1]]
    return [str(path), *(best or ["no trial has finished yet"])]


def write_comparison(folders: Sequence[Path]) -> list[str]:
    """Writes FIRST/comparison.html; returns the lines to say. Raises ConfigError for what is not two runs or more."""
    for folder in folders:
        if is_sweep(folder):
            raise ConfigError(f"{folder} is a sweep; its page compares its trials: name it alone, or runs alone")
        if not is_run(folder):
            raise ConfigError(f"{folder} is no run; name folders that medreason.train has written")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("the same run twice; name different ones")
    runs = read_compared(folders)
    benchmarks = tested(runs)
    path = folders[0] / "comparison.html"
    with whole_file(path) as draft:
        draft.write_text(comparison_page(runs, benchmarks), encoding="utf-8", errors="replace")
    return [str(path), *summary(runs, benchmarks)]


def named(word: str) -> Path:
    """The folder that a word names; `last` and `best` are runs' names where no such folder lies here."""
    folder = Path(word)
    return find_run(word) if word in NAMES and not folder.is_dir() else folder


def ranking(sweep: Path, top: int = 10) -> list[str]:
    """How the trials of a sweep ended, the best first, and the command of its report; nothing without a trial."""
    trials = read_sweep(sweep)
    if not trials:
        return []
    done = finished(trials)
    metric = monitored(read_mapping(done[0].folder / "config.yaml")[0]) if done else ""
    rows = [f"{place:3}. {t.value:.4f}  {describe(t)}  ({t.number})" for place, t in enumerate(done[:top], 1)]
    more = [f"     and {len(done) - top} more"] if len(done) > top else []
    lowest = f"; the lowest {metric} first, its trial's folder last:" if done else ""
    return [counted(trials) + lowest, *rows, *more, f"report: {command_line('report', [str(from_here(sweep))])}"]


def describe(trial: Trial, without: str = "") -> str:
    told = {key: value for key, value in trial.settings.items() if key != without}
    return " ".join(f"{key}={short(setting(value))}" for key, value in told.items())


def main(arguments: Sequence[str] | None = None) -> int:
    speak_safely()
    parser = argparse.ArgumentParser(
        "medreason.report",
        description="A run or a sweep as one page, DIR/report.html; several runs side by side, FIRST/comparison.html.",
    )
    parser.add_argument(
        "folders", metavar="DIR", nargs="+", help="a run, last or best for one in runs/, or a sweep; two runs or more"
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="rows in the table of best trials")
    options = parser.parse_args(arguments)
    place = Path(options.folders[0])
    try:
        folders = [named(word) for word in options.folders]
        place = folders[0]
        lines = write_report(place, options.top) if len(folders) == 1 else write_comparison(folders)
    except (ConfigError, OSError) as error:
        why = describe_full(error, place) if disk_full(error) else f"{' '.join(options.folders)}: {error}"
        print(one_line(f"medreason.report: {why}"), file=sys.stderr)
        return 2
    print("\n".join(map(one_line, lines)))
    return 0
