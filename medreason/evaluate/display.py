"""Scores (medreason/report/scores.py) to look at: a table in the terminal, a picture of shares with their intervals."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medreason.core.disk import whole_file
from medreason.core.outside import drawn, literal, prepare_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Score = Mapping[str, Any]
HABIT = 0.8  # share of the questions for which one letter is chosen
UNREAD = 0.1  # share of a judge's replies without a verdict that is worth words


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
    for name, score in found.items():
        for words in filter(None, (habit(score), unread(score))):
            console.print(literal(f"{name}: {words}"), soft_wrap=True)
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


def habit(score: Score) -> str:
    """Words where one letter explains a score: chosen nearly always, and alone worth as much."""
    letters = score.get("letters") or {}
    if not letters or score.get("accuracy") is None:
        return ""
    letter, count = max(letters.items(), key=lambda one: one[1]["chosen"])
    chosen, alone = count["chosen"] / score["questions"], count["gold"] / score["questions"]
    if chosen < HABIT or score["interval"][0] > alone:
        return ""
    return f"{letter} for {chosen:.0%} of the questions, which alone scores {alone:.1%}: a habit and not knowledge"


def judged_mean(score: Score) -> str:
    """What the judge says; nothing where none was asked."""
    judged = score.get("judged")
    if judged is None:
        return ""
    if judged["mean"] is None:
        return "none: no verdict"
    low, high = judged["interval"]
    of = "" if judged["scored"] == score["questions"] else f", of {judged['scored']:,}"
    return f"{judged['mean']:.1%} ({low:.1%} to {high:.1%}){of}"


def judged_agreement(part: str) -> Callable[[Score], str]:
    """How often the judge agrees, with itself or with the rule, and beyond chance."""

    def cell(score: Score) -> str:
        found = score.get("judged", {}).get(part)
        if not found or found["share"] is None:
            return ""
        low, high = found["interval"]
        kappa = "" if found["kappa"] is None else f", kappa {found['kappa']:.2f}"
        return f"{found['share']:.1%} ({low:.1%} to {high:.1%}){kappa}"

    return cell


def no_verdict(score: Score) -> str:
    judged = score.get("judged")
    return f"{judged['no_verdict']:,} of {judged['verdicts']:,}" if judged else ""


def unread(score: Score) -> str:
    """Words where too few of a judge's replies could be read for its score to be one."""
    judged = score.get("judged") or {"verdicts": 0, "no_verdict": 0}
    missing = judged["no_verdict"]
    if not missing or missing <= UNREAD * judged["verdicts"]:
        return ""
    score_of = "there is no score" if judged["mean"] is None else f"the score is of {judged['scored']:,} questions"
    return (
        f"no verdict in {missing:,} of the judge's {judged['verdicts']:,} replies, asked again: {score_of}. Their "
        "texts are in *_judge.jsonl; raise judge_tokens where they are cut, or name another judge_model"
    )


def mean_loss(score: Score) -> str:
    if "loss" not in score:
        return ""
    low, high = score["loss"]["interval"]
    return f"{score['loss']['mean']:.3f} ({low:.3f} to {high:.3f})"


# what is printed of a benchmark, a row each; a row without any cell is left out
MEASURES: dict[str, Callable[[Score], str]] = {
    "questions": lambda score: f"{score['questions']:,}",
    "accuracy (95% interval)": share,
    "judged score (95% interval)": judged_mean,
    "no verdict": no_verdict,
    "judge agrees with itself": judged_agreement("self_agreement"),
    "judge agrees with exact match": judged_agreement("exact_match"),
    "unseen in training": share_of("unseen"),
    "of so many": lambda score: f"{score['unseen']['questions']:,}" if "unseen" in score else "",
    "HuatuoGPT-o1's rule": share_of("huatuo"),
    "guessing": lambda score: f"{score['chance']:.1%}" if score.get("chance") is not None else "",
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


def answered_by(evaluated: Mapping[str, Any]) -> str:
    """Whose answers an evaluation holds, and how they were given, as its evaluation.json has it."""
    run, model = (Path(str(evaluated.get(key) or "")).name for key in ("run", "model"))
    who = f"{model} without an adapter" if evaluated.get("base") else run
    how = {"likelihood": "letters by probability", "generate": "in writing"}.get(str(evaluated.get("method")), "")
    return ", ".join(filter(None, (who, how))) or "this evaluation"


def rows_of(scores: Score) -> list[tuple[str, Score, Score | None, bool]]:
    """A row for each benchmark and for each of its subjects where there are several.

    Of each its name, its score, the other model's or None, and whether it is a whole benchmark.
    """
    rows: list[tuple[str, Score, Score | None, bool]] = []
    others = scores.get("others", {}).get("scores", {})
    for name, score in scores["scores"].items():
        if score.get("accuracy") is None:
            continue  # a loss is no share
        other = others.get(name, {})
        rows.append((name, score, shown(other), True))
        if "unseen" in score:
            rows.append(("unseen in training", score["unseen"], None, False))
        if len(score["subjects"]) > 1:
            rows += [
                (subject or "other", part, shown(other.get("subjects", {}).get(subject, {})), False)
                for subject, part in score["subjects"].items()
            ]
    return [row for row in rows if shown(row[1])]


def shown(score: Score) -> Score | None:
    """The score where it has an accuracy to draw."""
    return score if score.get("accuracy") is not None else None


OURS, THEIRS, CHANCE = "#0072b2", "#e69f00", "black"  # of Okabe and Ito; the other model's bars are hatched, too


def picture(scores: Score) -> "Figure | None":
    """A bar with its 95% interval for each benchmark and subject, another model's beside it, and what guessing scores.

    None where nothing was graded.
    """
    from matplotlib.figure import Figure

    prepare_pictures()
    rows = rows_of(scores)
    if not rows:
        return None
    beside = any(other for _, _, other, _ in rows)
    thick = 0.36 if beside else 0.6
    figure = Figure(figsize=(9, 1.8 + (0.62 if beside else 0.42) * len(rows)), layout="constrained")
    axes = figure.subplots()
    ours = drawn(answered_by(scores.get("evaluated", {})))
    theirs = "against: " + drawn(answered_by(scores.get("others", {}).get("evaluated", {})))
    for place, (_, score, other, whole) in enumerate(rows):
        pair = [(score, OURS, "", ours)] + ([(other, THEIRS, "///", theirs)] if other else [])
        for (one, colour, hatch, label), shift in zip(pair, (-0.19, 0.19) if other else (0.0,), strict=True):
            bar(axes, one, place + shift, thick if whole else 0.7 * thick, color=colour, hatch=hatch,
                alpha=1 if whole else 0.6, label=label)  # fmt: skip
    start = 0
    ends = [place for place, row in enumerate(rows) if row[3] and place] + [len(rows)]
    for end in ends:  # a benchmark's rows stand together
        guessed = scores["scores"][rows[start][0]].get("chance")
        if guessed is not None:
            axes.plot([100 * guessed] * 2, [start - 0.45, end - 0.55], color=CHANCE, ls="--", lw=2, label="guessing")
        start = end
    names = [("" if whole else "  ") + f"{drawn(name)} ({score['questions']:,})" for name, score, _, whole in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=12)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.tick_params(axis="x", labelsize=12)
    axes.set_xlabel("questions answered correctly, % (95% interval)", fontsize=12)
    figure.suptitle(ours, fontsize=13)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    named: dict[str, Any] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        named.setdefault(label, handle)  # the first, which is a whole benchmark's
    keys = [label for label in ((ours, theirs) if beside else ()) if label in named]
    keys += ["guessing"] if "guessing" in named else []
    if keys:
        figure.legend([named[key] for key in keys], keys, loc="outside lower center", frameon=False, fontsize=12)
    return figure


def bar(axes: Any, score: Score, place: float, height: float, **look: Any) -> None:
    """The share of right answers, its interval as a whisker, the number at the end."""
    low, high = (100 * bound for bound in score["interval"])
    share = 100 * score["accuracy"]
    axes.barh(place, share, height, edgecolor="white", **look)
    axes.plot([low, high], [place, place], color="#333333", lw=1.8, solid_capstyle="butt")
    axes.plot([low, high], [place, place], "|", color="#333333", ms=7, mew=1.8)
    text, side = (high + 1, "left") if high < 90 else (low - 1, "right")
    axes.text(text, place, f"{share:.0f}", va="center", ha=side, fontsize=11, color="black" if high < 90 else "white",
              weight="bold")  # fmt: skip


def draw(scores: Score, path: Path) -> None:
    """Writes the picture; none where nothing was graded."""
    figure = picture(scores)
    if figure is not None:
        with whole_file(path) as draft:
            figure.savefig(draft, dpi=120)
