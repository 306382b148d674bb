"""What fine-tuning changes, by this project's own commands: two runs of a small real model, evaluated before and after.

usage: quality.py ROWS_FILE QUESTIONS_FILE[,...] OUT_FOLDER [MODEL] [STEPS] [PRECISION,...] [SETTING...]
       MODEL is an option of conf/model, smollm2_135m without; PRECISIONs are those of model.precision, without:
       bf16,fp8,nf4; on a CPU take half. SETTINGs go to every training run.

`rows` learns medical reasoning rows, once in each precision, and in the first of them answers multiple-choice questions
by likelihood, the base some also with their options in four orders. `cases` learns rule-made clinical cases and writes
answers to others.
Runs of a stage are processes of their own at the same time, so nothing here says how fast anything is.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the package is not installed
from medreason.core.run_directory import provenance, read_json, write_json

PAIRS = (("rows_before", "rows_after"), ("rows_before", "four_orders"), ("cases_before", "cases_after"))
TRAINED = ["optim=adamw", "optim.warmup_steps=5", "trainer.accumulate=1", "trainer.max_epochs=999",
           "trainer.answer_questions=0"]  # fmt: skip
WRITING = ["method=generate", "batching=static", "batch=100", "max_new_tokens=192"]


def at_once(commands: dict[str, list[str]], logs: Path) -> None:
    """Carries out `python -m medreason.NAME ...` commands side by side. Raises RuntimeError for one that failed."""
    began = time.monotonic()
    started = {}
    for name, command in commands.items():
        with (logs / f"{name}.log").open("w", encoding="utf-8") as log:
            started[name] = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=subprocess.STDOUT)
    try:
        for name, process in started.items():
            if process.wait() != 0:
                said = (logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"{name} failed:\n{said[-1500:]}")
            print(f"{name}: done after {time.monotonic() - began:.0f} s", flush=True)
    finally:
        for process in started.values():
            process.terminate()


def main(
    rows: str,
    questions: str,
    out: str,
    model: str = "smollm2_135m",
    steps: str = "200",
    precisions: str = "bf16,fp8,nf4",
    *settings: str,
) -> None:
    first, *others = precisions.split(",")
    folder = Path(out)
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    def training(name: str, *more: str) -> list[str]:
        last = [f"trainer.max_steps={steps}", f"trainer.validate_every_steps={steps}"]
        where = f"hydra.run.dir={folder / name}"
        return ["medreason.train", f"model={model}", *TRAINED, *last, *more, *settings, where]

    def evaluation(run: str, name: str, *more: str) -> list[str]:
        return ["medreason.evaluate", f"run={folder / run}", *more, f"output={folder / name}"]

    real = ["data=local", f"data.path={rows}", "data.too_long=truncate"]
    runs = {
        f"rows_{one}": training(f"rows_{one}", *real, f"model.precision={one}") for one in (first, *others)
    } | {
        "cases": training("cases", "data=clinical_cases", "data.row_tokens=4096", f"model.precision={first}",
                          "optim.lr=2e-3", "lora.alpha=2r")
    }  # fmt: skip
    at_once(runs, logs)

    by_letters = f"benchmarks=[{questions},held_out]"
    in_orders = [f"benchmarks=[{questions}]", "base=true", "orders=4", "limit=400"]
    written = ["benchmarks=[clinical_cases]", *WRITING]
    before = {
        "rows_before": evaluation(f"rows_{first}", "rows_before", by_letters, "base=true"),
        "cases_before": evaluation("cases", "cases_before", *written, "base=true"),
    }
    at_once(before, logs)
    against = {name: f"against={folder / name}" for name in before}
    after = {
        "four_orders": evaluation(f"rows_{first}", "four_orders", *in_orders, against["rows_before"]),
        "rows_after": evaluation(f"rows_{first}", "rows_after", by_letters, against["rows_before"]),
        "cases_after": evaluation("cases", "cases_after", *written, against["cases_before"]),
    }
    at_once(after, logs)

    losses = {
        one: read_json(folder / f"rows_{one}" / "run.json")["results"]["val_loss_after"] for one in (first, *others)
    }
    found = {name: read_json(folder / name / "scores.json") for name in (*before, *after)}
    kept = {name: {"scores": one["scores"], "differences": one["differences"]} for name, one in found.items()}
    record = {"provenance": provenance(), "model": model, "steps": int(steps), "held_out_loss": losses}
    write_json(folder / "quality.json", record | {"evaluations": kept})
    draw(kept, f"{model}, {steps} steps", folder / "quality.png")
    print(f"\nheld-out loss after {steps} steps on {Path(rows).name}")
    for one, loss in losses.items():
        print(f"  {one:6} {loss:.4f}  {loss / losses[first] - 1:+.2%}")
    for one, other in PAIRS:
        print(f"\n{one} -> {other}")
        for name, score in kept[other]["scores"].items():
            earlier, told = kept[one]["scores"][name], kept[other]["differences"].get(name, {})
            print(f"  {name}: {in_short(earlier)} -> {in_short(score)}; {told.get('in_words', '')}")


def in_short(score: dict[str, Any]) -> str:
    """Accuracy or loss, with its interval."""
    if "loss" in score:
        low, high = score["loss"]["interval"]
        return f"{score['loss']['mean']:.3f} [{low:.3f}, {high:.3f}]"
    low, high = score["interval"]
    return f"{score['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {score['questions']}"


def draw(evaluations: dict[str, Any], title: str, path: Path) -> None:
    """Accuracy before and after, with 95% intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pairs = [(name, evaluations[one]["scores"][name], score) for one, other in PAIRS if other != "four_orders"
             for name, score in evaluations[other]["scores"].items() if score.get("accuracy") is not None]  # fmt: skip
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.7 * len(pairs)), layout="constrained")
    for place, (_, *scores) in enumerate(pairs):
        for shift, score, colour in zip((-0.18, 0.18), scores, ("#8fa8c0", "#2c5a8c"), strict=True):
            low, high = (100 * bound for bound in score["interval"])
            share = 100 * score["accuracy"]
            axes.barh(place + shift, share, 0.34, color=colour, xerr=[[share - low], [high - share]], ecolor="#444444")
            axes.text(high + 1, place + shift, f"{share:.1f}", va="center", fontsize=9)
    axes.set_yticks(range(len(pairs)), [f"{name} ({after['questions']:,})" for name, _, after in pairs])
    axes.invert_yaxis()
    axes.set(
        xlim=(0, 108), xlabel="right answers, % (above: before training, below: after; 95% intervals)", title=title
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
