"""This project's engines and their peers on the same rows, one after the other: a table, a bar chart, a JSON file.

usage: training_speed.py MODEL_FOLDER ROWS_FILE OUT_FOLDER [STEPS] [ROW_TOKENS] [NAME...]
       MODEL_FOLDER of Mistral-7B's shape, random weights are exact for speed. NAMEs are those of ENGINES and of
       benchmarks/peers.py; all without. Each is a process of its own on the GPU that is there.

This project's are whole runs, `python -m medreason.train`: Lightning, data module, checkpoints, metrics logged at every
step. Tokens per second are those of documents, padding left out; the median of the steps after the first third.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the package is not installed
from medreason.core.run_directory import on_cpu, provenance, read_json, read_metrics, series, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
ENGINES = {
    "fp8": ["model.precision=fp8"],
    "bf16": ["model.precision=bf16"],
    "nf4": ["model.precision=nf4"],
    "fp8_24gib": ["model.precision=fp8", "trainer.memory_gib=24"],
    "fp8_16gib": ["model.precision=fp8", "trainer.memory_gib=16"],
    "fp8_r64": ["model.precision=fp8", "lora.r=64"],
    "cpu_bf16": ["model.precision=bf16", "trainer=cpu", "optim=adamw"],  # for a test that this still runs
}
PEERS = ("unsloth_trl_packed", "unsloth_trl", "hf_trl")
LABELS = {  # of a bar: what is trained by what, without the names that select it
    "fp8": "medreason, fp8",
    "bf16": "medreason, bf16",
    "nf4": "medreason, 4-bit (Unsloth's engine)",
    "fp8_24gib": "medreason, fp8 in at most 24 GiB",
    "fp8_16gib": "medreason, fp8 in at most 16 GiB",
    "fp8_r64": "medreason, fp8, LoRA rank 64",
    "cpu_bf16": "medreason, bf16 on a CPU",
    "unsloth_trl_packed": "Unsloth with TRL, packed",
    "unsloth_trl": "Unsloth with TRL, not packed",
    "hf_trl": "transformers with TRL, not packed",
}
ON_A_GPU = ("fp8", "bf16", "nf4", "fp8_24gib", "fp8_16gib", "fp8_r64", *PEERS)
SECONDS = 420  # for each


def engine(name: str, model: str, rows: str, steps: int, row_tokens: int) -> dict[str, Any]:
    """Speed of a run of this project."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable, "-m", "medreason.train", f"model.path={model}", "data=local", f"data.path={rows}",
            f"data.row_tokens={row_tokens}", "data.too_long=truncate", "data.validation_share=0.02",
            "trainer.max_epochs=99", f"trainer.max_steps={steps}", f"trainer.validate_every_steps={steps}",
            "trainer.accumulate=1", "trainer.answer_questions=0", *ENGINES[name], f"hydra.run.dir={run}",
        ]  # fmt: skip
        said = carry_out(command)
        if not (run / "metrics.csv").is_file():
            raise RuntimeError(said[-300:])
        rates = series(read_metrics(run / "metrics.csv"), "train/tokens_per_second")[1]
        record = read_json(run / "run.json")
    kept = rates[len(rates) // 3 :]
    return {
        "name": name,
        "tokens_per_second": statistics.median(kept),
        "memory_gib": record["results"]["peak_memory_gib"],
        "expected_gib": (record.get("memory") or {}).get("expected_gib"),
        "recompute": record.get("recompute"),
        "steps": len(rates),
    }


def peer(name: str, model: str, rows: str, steps: int, row_tokens: int) -> dict[str, Any]:
    """Speed of another project: rows of 2,048 tokens at most, as its users have them."""
    length = min(row_tokens, 2048)
    said = carry_out([sys.executable, str(HERE / "peers.py"), name, model, rows, str(steps), str(length)])
    found = re.search(r"^RESULT (.*)$", said, re.MULTILINE)
    if not found:
        raise RuntimeError(said[-300:])
    result: dict[str, Any] = json.loads(found[1])
    return result


def carry_out(command: list[str]) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS, env=env)
    return done.stdout + done.stderr


def draw(results: list[dict[str, Any]], made: dict[str, Any]) -> "Figure":
    """A bar for each engine, the fastest on top; those of other projects hatched."""
    from matplotlib.figure import Figure

    ranked = sorted(results, key=lambda result: -result["tokens_per_second"])
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(ranked)), layout="constrained")
    axes = figure.subplots()
    for place, result in enumerate(ranked):
        rate, other = result["tokens_per_second"], result["name"] in PEERS
        axes.barh(place, rate, color="#e69f00" if other else "#0072b2", hatch="//" if other else "", edgecolor="white")
        # without a GPU the host's memory was measured, of which the model is a small part
        memory = f", {result['memory_gib']:.0f} GiB" if result["memory_gib"] and not on_cpu(made) else ""
        axes.text(rate, place, f" {rate:,.0f}{memory}", va="center", fontsize=12)
    labels = [LABELS[result["name"]] for result in ranked]
    axes.set_yticks(range(len(ranked)), labels, fontsize=12)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * ranked[0]["tokens_per_second"])
    axes.set_xlabel("tokens of documents per second", fontsize=12)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    told = "" if on_cpu(made) else " and peak GPU memory"
    figure.suptitle(f"Training speed{told}, {made['device']}", fontsize=13)
    versions = [f"{name} {made['versions'][name]}" for name in ("torch", "unsloth", "trl") if made["versions"][name]]
    figure.supxlabel(", ".join([*versions, f"commit {(made['commit'] or 'unknown')[:7]}"]), fontsize=9, color="#555555")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(model: str, rows: str, out: str, steps: str = "24", row_tokens: str = "8192", *names: str) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for name in names or ON_A_GPU:
        measure = peer if name in PEERS else engine
        try:
            results.append(measure(name, model, rows, int(steps), int(row_tokens)))
        except (RuntimeError, subprocess.TimeoutExpired, KeyError) as error:
            print(f"{name}: {str(error).strip()[-300:]}", flush=True)
            continue
        found = results[-1]
        print(f"{name:20} {found['tokens_per_second']:>8,.0f} tokens/s  {found['memory_gib'] or 0:.1f} GiB", flush=True)
        made = provenance()
        write_json(
            folder / "training_speed.json", {"provenance": made, "row_tokens": int(row_tokens), "results": results}
        )
        draw(results, made).savefig(folder / "training_speed.png", dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
