"""The same sweep twice: undisturbed, and with its processes killed at random moments. Both must end alike.

usage: sweep_survival.py FOLDER [TRIALS] [KILLS] [SEED]

A tiny model on a CPU searches ranks and learning rates; one rank is refused, one learning rate makes the loss infinite.
A kill (SIGKILL) hits the process that is training or, as often, the sweep itself with all its processes, after which
the same command is run again. Needs five minutes.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from medreason.core.run_directory import read_json
from medreason.data.clinical_cases import generate_cases

SETTINGS = [
    "sweeps=rank_alpha_lr", "model=tiny", "trainer=cpu", "optim=adamw", "data=local", "data.row_tokens=1024",
    "data.validation_share=0.2", "data.deduplicate=off", "lora.dropout=0.1", "trainer.answer_questions=0",
    "trainer.max_steps=24", "trainer.max_epochs=9", "trainer.validate_every_steps=6",
    "trainer.checkpoint_every_steps=4", "hydra.sweeper.min_steps=6",
    "lora.r=choice(2,4,8,16,400000000000)", "optim.lr=choice(1e-4,1e-3,1e-2,3e-2,1e30)",
]  # fmt: skip


def start(rows: Path, folder: Path, trials: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "medreason.train", *SETTINGS, f"data.path={rows}", f"hydra.sweep.dir={folder}",
               f"hydra.sweeper.trials={trials}", "hydra.sweeper.retries=20"]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def trial_processes(folder: Path) -> list[int]:
    """Processes that train a trial of the sweep in `folder`, each maybe not its first."""
    found = []
    for log in folder.glob("[0-9]*/train.log"):
        said = re.findall(r"\(process (\d+)\)", log.read_text(encoding="utf-8", errors="replace"))
        trains = read_json(log.parent / "run.json").get("status") in ("starting", "running")
        if trains and said and Path("/proc", said[-1]).exists():
            found.append(int(said[-1]))
    return found


def disturbed(rows: Path, folder: Path, trials: int, kills: int, seed: int) -> Counter[str]:
    """Runs the sweep and kills; how often what was hit."""
    moments, hit = random.Random(seed), Counter[str]()
    sweep = start(rows, folder, trials)
    while sweep.poll() is None or hit.total() < kills:
        if sweep.poll() is not None:
            raise RuntimeError(f"the sweep ended after {hit.total()} kills: see {folder}.log")
        time.sleep(moments.uniform(3, 15) if hit.total() < kills else 1)
        if hit.total() >= kills or sweep.poll() is not None:
            continue
        training = trial_processes(folder)
        if moments.random() < 0.5 and training:
            os.kill(training[0], signal.SIGKILL)
            hit["trial"] += 1
        else:
            os.killpg(sweep.pid, signal.SIGKILL)
            sweep.wait()
            hit["sweep"] += 1
            sweep = start(rows, folder, trials)
    return hit


def outcomes(folder: Path) -> dict[int, tuple[object, ...]]:
    """Of each trial its settings, how it ended, its value and its reason."""
    found = {}
    for path in folder.glob("[0-9]*/trial.json"):
        trial = json.loads(path.read_text(encoding="utf-8"))
        reason = (trial["reason"] or "").split(":")[0] + ": " + (trial["reason"] or "").partition(": ")[2][:24]
        found[trial["number"]] = (tuple(trial["params"].items()), trial["state"], trial["value"], reason)
    return found


def main() -> None:
    place = Path(sys.argv[1]).resolve()
    trials, kills, seed = (int(text) for text in [*sys.argv[2:], "20", "10", "1"][:3])
    place.mkdir(parents=True, exist_ok=True)
    rows = place / "rows.jsonl"
    cases = [
        {"Question": case.question, "Complex_CoT": case.reasoning, "Response": case.answer}
        for case in generate_cases(60, seed=7)
    ]
    rows.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    whole = start(rows, place / "undisturbed", trials)
    hit = disturbed(rows, place / "disturbed", trials, kills, seed)
    whole.wait()
    expected, found = outcomes(place / "undisturbed"), outcomes(place / "disturbed")
    for number in sorted({*expected, *found}):
        same = "same" if expected.get(number) == found.get(number) else f"BUT UNDISTURBED {expected.get(number)}"
        died = json.loads((place / "disturbed" / str(number) / "trial.json").read_text(encoding="utf-8"))["died"]
        print(number, *(found.get(number) or ["missing"]), f"died {len(died)}", same, sep=" | ")
    print(f"kills: {dict(hit)}; states: {dict(Counter(str(trial[1]) for trial in found.values()))}")
    print("every trial as in the undisturbed sweep" if expected == found else "THE SWEEPS DIFFER")


if __name__ == "__main__":
    main()
