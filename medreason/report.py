"""python -m medreason.report DIR: a run, or a sweep of runs, as one page: DIR/report.html.

Reads files alone, so it works anywhere and on a sweep that is still running. The page holds its pictures in itself;
DIR/report/ holds them as files.
"""

import argparse
import base64
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medreason.config import ConfigError, Format
from medreason.prompts import parse_answer
from medreason.sweep_results import (
    BEST_SHARE,
    LEAST_FINISHED,
    Repeats,
    Trial,
    by_start,
    compare,
    finished,
    finite,
    importance,
    interval,
    is_run,
    is_sweep,
    look_up,
    mapping,
    monitored,
    read_mapping,
    read_rows,
    read_sweep,
    read_trial,
    repeats,
    saved_by_pruning,
    setting,
    varied,
)  # fmt: skip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --text: #1d2127; --dim: #626a75; --line: #dfe3e8; --back: #fff; --soft: #f5f6f8;
  --accent: #b03426 }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6ea; --dim: #9aa2ad; --line: #343940; --back: #121212;
  --soft: #1d2024; --accent: #f08a7c }
  /* white becomes the page's own #121212, black text light, and hues stay as they were */
  img { filter: invert(.93) hue-rotate(180deg) } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem; max-width: 68rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem }
p { max-width: 48rem; margin: .5rem 0 } .dim, figcaption, th { color: var(--dim) }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0; padding: 0; list-style: none }
.tiles li { background: var(--soft); border-radius: 8px; padding: .55rem .95rem }
.tiles b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums } .tiles span { color: var(--dim);
  font-size: .85rem }
pre { background: var(--soft); border-radius: 8px; padding: .8rem 1rem; margin: .6rem 0; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .85rem/1.5 ui-monospace, monospace } .command { user-select: all }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: .35rem 1rem .35rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: 500 } th, td { white-space: nowrap } .prose { display: block; white-space: normal;
  overflow-wrap: anywhere; min-width: 12rem; max-width: 34rem }
tr.best td { color: var(--accent); font-weight: 600 } a { color: inherit }
/* on a telephone a picture scrolls: shrunk to its width, nothing in it can be read */
figure { margin: .8rem 0; overflow-x: auto }
img { max-width: max(100%, 38rem); height: auto; display: block }
figcaption { font-size: .88rem;
  max-width: 48rem; margin-top: .3rem }
details { margin: .5rem 0 } summary { cursor: pointer; color: var(--dim) }
.sample { border-left: 3px solid var(--line); padding-left: 1rem; margin: 1.2rem 0 } .text { white-space: pre-wrap;
  overflow-wrap: anywhere }
"""
# of a run's configuration, what a reader asks for first
TELLING = (
    "model.path", "model.precision", "lora.r", "lora.alpha", "lora.dropout", "lora.rslora", "lora.dora",
    "optim.algorithm", "optim.lr", "optim.loraplus_ratio", "optim.weight_decay", "optim.warmup_steps", "optim.decay",
    "data.source", "data.path", "data.format", "data.packing", "data.row_tokens", "trainer.precision",
    "trainer.max_epochs", "trainer.max_steps", "trainer.rows_per_batch", "trainer.accumulate", "seed", "monitor",
)  # fmt: skip


def page(title: str, parts: Iterable[str]) -> str:
    """A whole HTML page, self-contained."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it; nothing where that is empty."""
    inside = [part for part in parts if part]
    return "\n".join([f"<h2>{escape(title)}</h2>", *inside]) if inside else ""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def prose(text: str) -> str:
    """Text of a table's cell that may take several lines."""
    return f'<span class="prose">{escape(text)}</span>' if text else ""


def command_block(overrides: Sequence[str]) -> str:
    """The command that trains with these overrides; one click selects it whole."""
    return f'<pre class="command">{escape("python -m medreason.train " + shlex.join(overrides))}</pre>'


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for name, value in facts)
    return f'<ul class="tiles">{cells}</ul>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], best: int | None = None) -> str:
    """A table of cells that are HTML already; row `best` stands out."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = [
        f"<tr{' class=best' if place == best else ''}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        for place, row in enumerate(rows)
    ]
    body = "\n".join(lines)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>' if lines else ""


def facts_table(facts: Mapping[str, Any]) -> str:
    """Names and values, nothing for an empty value."""
    rows = [(escape(name), prose(told(value))) for name, value in facts.items() if value not in (None, "", {}, [])]
    return table(("", ""), rows).replace("<tr><th></th><th></th></tr>\n", "")


def told(value: Any) -> str:
    """A value of a JSON or YAML file as a reader wants it."""
    from medreason.sweep_plots import short

    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else short(value)


def picture(figure: "Figure | None", folder: Path, name: str, caption: str) -> str:
    """The figure as part of the page, and as FOLDER/NAME.png; nothing for no figure."""
    if figure is None:
        return ""
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.png").write_bytes(drawn.getvalue())
    source = f"data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}"
    text, width = escape(caption), round(figure.get_figwidth() * 105)  # letters of one size in all pictures
    return f'<figure><img src="{source}" alt="{text}" width="{width}"><figcaption>{text}</figcaption></figure>'


def duration(seconds: float) -> str:
    """Short: 45 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def trial_cells(trial: Trial, keys: Sequence[str]) -> list[str]:
    """A table's row: the run's folder, its value, settings and cost."""
    from medreason.sweep_plots import amount, short

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
    """Trials that did not come to an end of their own, and those that were interrupted on the way, with reasons."""
    rows = [
        (
            f'<a href="{trial.folder.name}/">{trial.number}</a>',
            trial.state,
            prose(trial.reason),
            prose("; ".join(trial.died)),
        )
        for trial in trials
        if trial.state not in ("finished", "pruned") or trial.died or (trial.state == "finished" and trial.reason)
    ]
    return table(("trial", "state", "reason", "interruptions survived"), rows)


def cost(trials: Sequence[Trial]) -> str:
    """Where tokens and time went, and what pruning saved."""
    from medreason.sweep_plots import amount

    tokens, seconds = sum(t.tokens for t in trials), sum(t.seconds for t in trials)
    states = [state for state in dict.fromkeys(t.state for t in by_start(trials)) if tokens or seconds]
    rows = []
    for state in states:
        some = [trial for trial in trials if trial.state == state]
        spent, took = sum(t.tokens for t in some), sum(t.seconds for t in some)
        shares = (f" ({part / whole:.0%})" if whole else "" for part, whole in ((spent, tokens), (took, seconds)))
        rows.append((state, str(len(some)), amount(spent) + next(shares), duration(took) + next(shares)))
    rows.append(("all", str(len(trials)), amount(tokens), duration(seconds)))
    saved = saved_by_pruning(trials)
    says = "" if saved is None else f"Pruning saved about {amount(saved)} tokens: what the pruned trials would have "
    says += "" if saved is None else "trained on at the length of a finished one, less what they did."
    return table(("state", "trials", "tokens", "time"), rows) + (paragraph(says) if says else "")


def noise(found: Sequence[Repeats], sweep: Path) -> str:
    """How sure the order of the best configurations is: means and intervals over seeds, or how to get them."""
    from medreason.sweep_plots import short

    if not found:
        how = shlex.join(["sweeps=confirm_best", f"hydra.sweeper.sweep={sweep}"])
        return (
            paragraph("Not measured: each configuration ran once, so small differences may be chance. To measure it:")
            + f'<pre class="command">{escape("python -m medreason.train " + how)}</pre>'
        )
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


def sweep_page(sweep: Path, trials: Sequence[Trial], top: int) -> str:
    """The page of a sweep; its pictures are written on the way."""
    from medreason import sweep_plots as plots

    metric = next((monitored(c) for t in trials if (c := read_mapping(t.folder / "config.yaml")[0])), "val/loss")
    pictures, done, keys, tried = sweep / "report", finished(trials), varied(trials), plots.amount
    swept = list(dict.fromkeys(key for trial in trials for key in trial.settings))
    header = ("trial", metric, *swept, "steps", "tokens", "time")
    seconds = sum(trial.seconds for trial in trials)
    facts = [(counted(trials), f"{len(trials)} trial{'s' * (len(trials) > 1)}")]
    facts += [("tokens", tried(sum(t.tokens for t in trials))), ("time of all trials", duration(seconds))]
    facts += [(f"best {metric}, trial {done[0].number}", f"{done[0].value:.4f}")] if done else []
    best = ""
    if done:
        nothing = paragraph("Its files do not tell which overrides it was given.")
        best = command_block(done[0].overrides) if done[0].overrides else nothing
    every = [[*trial_cells(t, swept), t.state, prose(t.reason)] for t in trials]
    confirmed = read_sweep(sweep / "confirmed") or trials  # a folder of confirmations is a sweep of its own, too
    shares = importance(trials)
    return page(
        f"Sweep {sweep.resolve().name}",
        [
            f"<h1>Sweep {escape(sweep.resolve().name)}</h1>",
            tiles(facts),
            section("Repeat the best trial", best) if done else paragraph("No trial has finished yet."),
            section(
                "Best trials",
                table(header, [trial_cells(trial, swept) for trial in done[:top]], 0),
                "<details><summary>every trial</summary>" + table((*header, "state", "reason"), every) + "</details>",
            ),
            section(
                "Course",
                picture(plots.draw_curves(trials, metric), pictures, "curves", f"{metric} while each trial trained."),
                picture(
                    plots.draw_progress(trials, metric), pictures, "progress",
                    "What the search had found by how many tokens, trials in order of start.",
                ),
            ),
            section(
                "Settings",
                picture(
                    plots.draw_heat(trials, keys, metric), pictures, "heat",
                    f"Best {metric} of the finished trials in each cell. Empty: nothing was tried there.",
                ),
                picture(
                    plots.draw_slices(trials, keys, metric), pictures, "slices",
                    f"{metric} by setting, a point a trial: red the best, hollow a pruned one at its last value, "
                    "triangles beyond the axis.",
                ),
                picture(
                    plots.draw_importance(shares), pictures, "importance",
                    f"Which settings decide whether a trial is among the best {BEST_SHARE:.0%} (PED-ANOVA; pruned "
                    f"trials count as not among them). {len(done)} finished trials: with so few, take it as a hint.",
                ),
                "" if shares or len(keys) < 2
                else paragraph(f"Importance is estimated from {LEAST_FINISHED} finished trials on."),
            ),
            section("Noise", noise(repeats(confirmed, trials), sweep)),
            section("Cost", cost(trials)),
            section("Failures and interruptions", endings(trials) or paragraph("None.")),
        ],
    )  # fmt: skip


def run_page(run: Path) -> str:
    """The page of one run; its picture is written on the way."""
    from medreason import sweep_plots as plots

    trial = read_trial(run)
    (record, _), (config, _) = read_mapping(run / "run.json"), read_mapping(run / "config.yaml")
    results, name = mapping(record.get("results")), run.resolve().name
    facts = [("status", trial.state), ("optimizer steps", f"{trial.steps:,}"), ("time", duration(trial.seconds))]
    facts += [("tokens", plots.amount(trial.tokens))] if trial.tokens else []
    memory = finite(results.get("peak_memory_gib"))
    facts += [("peak GPU memory", f"{memory:.1f} GiB")] if memory is not None else []
    rows = []
    for label, key, shape in (("held-out loss", "val_loss", ".4f"), ("held-out exact match", "accuracy", ".1%")):
        pair = [finite(results.get(f"{key}_{when}")) for when in ("before", "after")]
        if any(each is not None for each in pair):
            rows.append([label, *("" if each is None else format(each, shape) for each in pair)])
    telling = {key: look_up(config, key) for key in dict.fromkeys((*trial.settings, *TELLING))}
    whole = (run / "config.yaml").read_text(errors="replace") if config else ""
    origin = {key: record.get(key) for key in ("started", "commit", "device", "python", "resumed_from")}
    return page(
        f"Run {name}",
        [
            f"<h1>Run {escape(name)}</h1>",
            tiles(facts),
            paragraph(f"{trial.state}: {trial.reason}") if trial.reason else "",
            paragraph(f"Interruptions survived: {'; '.join(trial.died)}.") if trial.died else "",
            section("Repeat it", command_block(trial.overrides) if trial.overrides else ""),
            section("Results", table(("", "before", "after"), rows)),
            section(
                "Course",
                picture(
                    plots.draw_run(read_rows(run / "metrics.csv"), monitored(config)), run / "report", "curves",
                    "Loss, held-out loss, learning rate and gradient norm by optimizer step.",
                ),
            ),
            section("Held-out questions", *samples(run, config)),
            section(
                "Configuration",
                facts_table(telling),
                f"<details><summary>all of it</summary><pre>{escape(whole)}</pre></details>" if whole else "",
            ),
            section("Data", facts_table(mapping(record.get("data")))),
            section("Made with", facts_table(origin | mapping(record.get("versions")))),
        ],
    )  # fmt: skip


def samples(run: Path, config: Mapping[str, Any]) -> list[str]:
    """Held-out questions with the answers before and after training, reasoning folded."""
    try:
        rows = json.loads((run / "samples.json").read_text())
    except (OSError, ValueError):
        return []
    style = Format.__members__.get(str(look_up(config, "data.format")), Format.think)
    return [sample(row, style) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def sample(row: Mapping[str, Any], style: Format) -> str:
    lines = [f'<p class="text"><b>{escape(str(row.get("question", "")))}</b></p>']
    lines += [answer("expected", str(row.get("reasoning") or ""), str(row.get("answer") or ""))]
    for when in ("before", "after"):
        if when in row:
            parsed = parse_answer(str(row[when]), style)
            lines.append(answer(when, parsed.reasoning, parsed.answer))
    return '<div class="sample">' + "\n".join(lines) + "</div>"


def answer(label: str, reasoning: str, text: str) -> str:
    folded = f'<details><summary>reasoning</summary><p class="text">{escape(reasoning)}</p></details>'
    return f'<p class="text"><span class="dim">{label}:</span> {escape(text or "(none)")}</p>' + folded * bool(
        reasoning
    )


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
    path.write_text(sweep_page(folder, trials, top) if sweep else run_page(folder))
    best = finished(trials)[:1]
    said = [f"best: trial {trial.number}, {trial.value:.4f}, {describe(trial)}" for trial in best]
    return [str(path), *(said or (["no trial has finished yet"] if sweep else []))]


def describe(trial: Trial) -> str:
    from medreason.sweep_plots import short

    return " ".join(f"{key}={short(setting(value))}" for key, value in trial.settings.items())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("medreason.report", description="A run or a sweep as one page: DIR/report.html.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="a run directory, or a sweep's")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="rows in the table of best trials")
    options = parser.parse_args(arguments)
    try:
        lines = write_report(options.folder, options.top)
    except (ConfigError, OSError) as error:
        print(f"medreason.report: {options.folder}: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
