"""Scores (medreason/scores.py) to look at: a table in the terminal, a picture of shares with their intervals."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medreason.disk import whole_file
from medreason.outside import drawn, literal, pyplot

Score = Mapping[str, Any]


def show(scores: Score) -> None:
    """Prints the table, and what the comparison says."""
    from rich.console import Console
    from rich.table import Table

    found = scores["scores"]
    table = Table("")
    for name in found:
        table.add_column(literal(name))
    for title, cell in MEASURES.items():
        cells = [cell(score) for score in found.values()]
        if any(cells):
            table.add_row(title, *map(literal, cells))
    console = Console(highlight=False)
    console.print(table)
    for name, pair in scores["differences"].items():
        console.print(literal(f"{name}, against {scores['against']}: {pair['in_words']}"), soft_wrap=True)


def share(score: Score) -> str:
    """Accuracy with its interval; nothing where there is none."""
    if score.get("accuracy") is None:
        return ""
    low, high = score["interval"]
    return f"{score['accuracy']:.1%} ({low:.1%} to {high:.1%})"


def share_of(part: str) -> Callable[[Score], str]:
    return lambda score: share(score.get(part, {}))


def chosen_letters(score: Score) -> str:
    counts = {letter: count["chosen"] for letter, count in score.get("letters", {}).items()}
    return " ".join(f"{letter} {count / score['questions']:.0%}" for letter, count in counts.items() if count)


def always_one_letter(score: Score) -> str:
    """What the letter scores that is right most often: less is worse than not to read the questions."""
    if "letters" not in score:
        return ""
    letter, most = max(score["letters"].items(), key=lambda one: one[1]["gold"])
    return f"{most['gold'] / score['questions']:.1%} ({letter})"


def mean_loss(score: Score) -> str:
    if "loss" not in score:
        return ""
    low, high = score["loss"]["interval"]
    return f"{score['loss']['mean']:.3f} ({low:.3f} to {high:.3f})"


# what is printed of a benchmark, a row each; a row without any cell is left out
MEASURES: dict[str, Callable[[Score], str]] = {
    "questions": lambda score: f"{score['questions']:,}",
    "accuracy (95% interval)": share,
    "unseen in training": share_of("unseen"),
    "of so many": lambda score: f"{score['unseen']['questions']:,}" if "unseen" in score else "",
    "HuatuoGPT-o1's rule": share_of("huatuo"),
    "always the same letter": always_one_letter,
    "letters chosen": chosen_letters,
    "longer than the model reads": lambda score: str(score.get("too_long", "")),
    "no answer": lambda score: str(score["no_answer"]) if "no_answer" in score else "",
    "cut by max_new_tokens": lambda score: str(score["cut"]) if "format" in score else "",
    "reasoning, then answer": share_of("format"),
    "all choices agree": share_of("agreement"),
    "calibration error": lambda score: f"{score['calibration']['ece']:.3f}" if "calibration" in score else "",
    "loss, nats a token": mean_loss,
    "perplexity": lambda score: f"{score['loss']['perplexity']:.2f}" if "loss" in score else "",
}


def draw(scores: Score, path: Path) -> None:
    """A point with its interval for each benchmark, and for each of its subjects where there are several."""
    plt = pyplot()
    rows = []
    for name, score in scores.items():
        if score.get("accuracy") is None:
            continue  # a loss is no share
        rows.append((name, score, True))
        if "unseen" in score:
            rows.append(("unseen in training", score["unseen"], False))
        if len(score["subjects"]) > 1:
            rows += [(f"{subject or 'other'}", part, False) for subject, part in score["subjects"].items()]
    if not rows:
        return
    figure, axes = plt.subplots(figsize=(8, 1 + 0.32 * len(rows)), layout="constrained")
    for place, (_, score, whole) in enumerate(rows):
        low, high = score["interval"]
        colour = "#2c5a8c" if whole else "#8fa8c0"
        axes.plot([100 * low, 100 * high], [place, place], color=colour, lw=2.5 if whole else 1.5)
        axes.plot([100 * score["accuracy"]], [place], "o", color=colour, ms=7 if whole else 4)
    axes.set_yticks(range(len(rows)), [f"{drawn(name)} ({score['questions']:,})" for name, score, _ in rows])
    axes.invert_yaxis()
    axes.set(xlabel="questions answered correctly, % (95% interval)", xlim=(0, 100))
    axes.grid(axis="x", alpha=0.3)
    with whole_file(path) as draft:
        figure.savefig(draft, dpi=120)
    plt.close(figure)
