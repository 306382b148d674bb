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
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the package is not installed
from medreason.run_directory import provenance, read_json, read_metrics, series, write_json

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


def draw(results: list[dict[str, Any]], made: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.4 * len(results)), layout="constrained")
    for place, result in enumerate(results):
        rate = result["tokens_per_second"]
        axes.barh(place, rate, color="#8fa8c0" if result["name"] in PEERS else "#2c5a8c")
        memory = f", {result['memory_gib']:.0f} GiB" if result["memory_gib"] else ""
        axes.text(rate, place, f" {rate:,.0f}{memory}", va="center", fontsize=9)
    axes.set_yticks(range(len(results)), [result["name"] for result in results])
    axes.invert_yaxis()
    axes.set(
        xlabel="document tokens per second",
        title=made["device"],
        xlim=(0, 1.25 * max(r["tokens_per_second"] for r in results)),
    )
    versions = [f"{name} {made['versions'][name]}" for name in ("torch", "unsloth", "trl") if made["versions"][name]]
    figure.supxlabel(", ".join([*versions, f"commit {(made['commit'] or 'unknown')[:7]}"]), fontsize=8, color="#666666")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


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
        draw(results, made, folder / "training_speed.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
