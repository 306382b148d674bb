"""What a sweep itself costs as it grows, with trials that train nothing: the sweeper's time a trial, then the report.

usage: sweep_growth.py FOLDER [TRIALS] [PRUNER]        2000 trials of asha by default; FOLDER is made

Each trial is played in the sweep's own process: it writes the files that a run leaves, and reports its losses to the
study as one does. That time is told apart from the sweeper's own, which is what is left: choosing, keeping, telling.
"""

import math
import random
import statistics
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from medreason.config import Pruner, Sampler, SearchConfig, TrainConfig
from medreason.core.cli import composed
from medreason.core.overrides import override
from medreason.core.run_directory import read_json, write_json, write_settings
from medreason.report.pages import write_report
from medreason.sweep.pruning import reports
from medreason.sweep.runner import carry_out_trials
from medreason.sweep.space import read_space
from medreason.sweep.study import count_tokens, make_pruner, open_study, propose_new, spent, storage_url

STEPS = 200  # of a whole trial, validated every tenth of them
SPACE, _ = read_space(
    {
        "lora.r": "choice(8,16,32,64)",
        "lora.alpha": "choice(1r,2r,4r)",
        "optim.lr": "tag(log,interval(1e-5,1e-3))",
        "lora.dropout": "interval(0,0.2)",
    },
    [],
)


class Player:
    """A launcher that plays each trial, and knows how long that took."""

    def __init__(self) -> None:
        self.began: list[tuple[float, float]] = []  # of each trial, by the clock and by this process's work
        self.ended: list[tuple[float, float]] = []
        self.asking: list[float] = []  # seconds that a trial's process needs to reach its study and to be told
        self.config = composed("model=smollm2_135m", "data=clinical_cases")

    def launch(self, jobs: list[list[str]], initial_job_idx: int) -> list[Any]:
        for job in jobs:
            self.began.append((time.perf_counter(), time.process_time()))
            given = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(job)}
            run = Path(given["hydra.sweep.dir"]) / str(given["hydra.sweep.subdir"])
            self.asking.append(play(run, losses(given, int(run.name)), as_given(self.config, given)))
            self.ended.append((time.perf_counter(), time.process_time()))
        return []

    def own(self) -> list[tuple[float, float]]:
        """What the sweep itself took between two trials: seconds by the clock, and of this process's work."""
        return [
            (began[0] - ended[0], began[1] - ended[1]) for began, ended in zip(self.began[1:], self.ended, strict=False)
        ]


def as_given(config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """A trial's configuration."""
    lora = replace(config.lora, r=given["lora.r"], alpha=given["lora.alpha"], dropout=given["lora.dropout"])
    return replace(config, lora=lora, optim=replace(config.optim, lr=given["optim.lr"]))


def losses(given: dict[str, Any], number: int) -> list[float]:
    """A made-up course: near the best rate it ends low, beyond it it diverges; every validation has its own noise."""
    noise = random.Random(number)
    end = 1.0 + 0.1 * (math.log10(given["optim.lr"]) + 3.5) ** 2 + 0.5 / given["lora.r"] + noise.gauss(0, 0.01)
    return [end + 1.5 * math.exp(-6 * place / 20) + noise.gauss(0, 0.005) for place in range(1, 21)]


def play(run: Path, course: list[float], config: TrainConfig) -> float:
    """Leaves what a run of that course leaves, and stops where the study says so; seconds spent on the study."""
    began = time.perf_counter()
    trial = reports(run, "val/loss")[0].trial
    asking = time.perf_counter() - began
    rows, made, pruned = ["epoch,step,train/loss,train/lr,train/grad_norm,train/tokens,val/loss"], 0, False
    for value in course:
        for _ in range(STEPS // len(course)):
            rows.append(f"0,{made},{value + 0.1},{1e-4},{0.5},{8192 * (made + 1)},")
            made += 1
        rows.append(f"0,{made},,,,,{value}")
        began = time.perf_counter()
        trial.report(value, made)
        pruned = made < STEPS and trial.should_prune()
        asking += time.perf_counter() - began
        if pruned:
            break
    (run / "metrics.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    write_settings(config, run / "config.yaml")
    result = {"steps": made, "tokens": 8192 * made, "monitored": min(course[: made // (STEPS // len(course))])}
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.gmtime(1_767_225_600 + 60 * int(run.name)))
    end = {"status": "pruned" if pruned else "finished", "started": started, "seconds": 0.3 * made, "results": result}
    write_json(run / "run.json", read_json(run / "run.json") | end)
    return asking


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    trials, pruner = int([*sys.argv[2:], "2000"][0]), Pruner([*sys.argv[3:], "asha"][0])
    folder.mkdir(parents=True)
    search = SearchConfig(None, 1, 1, 0, True, Sampler.tpe, pruner, 10, 3, trials, 10**18, None, 7, {})
    pruning = {"pruner": pruner.value, "min_steps": 10, "reduction_factor": 3, "url": storage_url(None, folder),
               "name": "growth"}  # fmt: skip
    study = open_study(pruning["url"], "growth", make_pruner(pruner, 10, 3, folder))
    player, tokens = Player(), count_tokens(folder)
    with (folder / "said.log").open("w", encoding="utf-8") as log, redirect_stdout(log):
        carry_out_trials(
            study,
            search,
            folder,
            player,  # type: ignore[arg-type]
            space=SPACE,
            pruning=pruning,
            propose=propose_new(SPACE, search.sampler, search.seed),
            describe=lambda params: (
                [override(key, value) for key, value in params.items()],
                {key: str(value) for key, value in params.items()},
            ),
            over=lambda: spent(search, study, tokens, 0),
        )
    print(f"{trials} trials of {pruner.value}; medians and longest of a tenth of them, milliseconds")
    print("trials         the sweeper, clock       work      a trial asking its study")
    for first in range(0, trials, max(1, trials // 10)):
        part = slice(first, first + max(1, trials // 10))
        clock, work = zip(*player.own()[part], strict=True)
        cells = [f"{1000 * each(some):8.1f}" for some in (clock, work, player.asking[part])
                 for each in (statistics.median, max)]  # fmt: skip
        print(f"{first:6} on", *cells)
    began = time.perf_counter()
    write_report(folder)
    print(f"report: {time.perf_counter() - began:.1f} s, {(folder / 'report.html').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
