"""Draws what a search with pruning found by how many tokens, beside the grid of the same settings.

usage: search_against_grid.py GRID SEARCH OUT.png      two sweep folders over the same values

Left, on which of the grid's settings the search spent its tokens; right, the best value by tokens, for the grid as the
mean over random orders of its trials.
"""

import random
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from medreason.report.results import Trial, by_start, finished, read_sweep


def best_by_tokens(trials: list[Trial]) -> tuple[list[float], list[float]]:
    """Tokens spent after each trial, in millions, and the best finished value by then."""
    tokens, best = [0.0], [float("nan")]
    for trial in trials:
        tokens.append(tokens[-1] + trial.tokens / 1e6)
        values = [*best[1:], *([trial.value] if trial.state == "finished" and trial.value is not None else [])]
        best.append(min((value for value in values if value == value), default=float("nan")))
    return tokens, best


def main() -> None:
    grid, search = read_sweep(Path(sys.argv[1])), by_start(read_sweep(Path(sys.argv[2])))
    trial_tokens = max(trial.tokens for trial in grid)
    whole, spent = sum(t.tokens for t in grid), sum(t.tokens for t in search)
    best, found = finished(grid)[0], finished(search)[0]
    assert best.value is not None
    place = [t.settings for t in finished(grid)].index(found.settings) + 1
    print(f"grid: {len(grid)} trials, {whole:,} tokens; best {best.value:.4f} with {best.settings}")
    print(f"search: {len(search)} trials, {spent:,} tokens ({spent / whole:.1%}); best {found.value:.4f}, which is the")
    print(f"grid's number {place} of {len(grid)}; pruned {sum(t.state == 'pruned' for t in search)}")
    for trial in finished(grid)[:6]:
        print(f"  grid {trial.value:.4f} {trial.settings}")

    figure, (shares, course) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    order = finished(grid) + [trial for trial in grid if trial.state != "finished"]
    given = {str(trial.settings): trial.tokens / trial_tokens for trial in search}
    shares.bar(range(1, len(order) + 1), [100 * given.get(str(t.settings), 0) for t in order], color="#c0392b")
    shares.set(
        xlabel="settings, in the order that the whole grid gives them: best first",
        ylabel="trained by the search, % of a whole trial",
        title=f"The search: {len(search)} trials, {spent / whole:.0%} of the grid's tokens",
    )
    orders = [best_by_tokens(random.Random(seed).sample(grid, len(grid)))[1][1:] for seed in range(200)]
    steps = [trial_tokens / 1e6 * (index + 1) for index in range(len(grid))]
    course.plot(steps, [statistics.mean(values) for values in zip(*orders, strict=True)], color="#7f8c9b",
                label=f"grid of {len(grid)}, mean of random orders")  # fmt: skip
    course.step(*best_by_tokens(search), where="post", color="#c0392b", label=f"search of {len(search)}")
    course.plot([spent / 1e6], [found.value], "o", color="#c0392b")
    course.set(xlabel="tokens trained on, millions", ylabel="best held-out loss so far", xlim=(0, None))
    course.set_ylim(0.97 * best.value, 1.6 * best.value)
    course.set_title(f"Best so far; the search ends with the grid's number {place}")
    course.legend(frameon=False)
    course.grid(alpha=0.3)
    figure.savefig(sys.argv[3], dpi=110)


if __name__ == "__main__":
    main()
