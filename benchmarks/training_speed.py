"""This project's engines and their peers on the same rows, one after the other: a table, a picture, a JSON file.

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
FOUR = ["model.engine=fast", "model.precision=nf4"]
BF16 = "model.compute_dtype=bf16"  # what a GPU before Ada can do
ENGINES = {
    "fast_8gib": [*FOUR, "data.row_tokens=6144", "trainer.memory_gib=8"],
    "fast_10gib": [*FOUR, "trainer.memory_gib=10"],
    "fast_12gib": [*FOUR, "trainer.memory_gib=12"],
    "fast_16gib": [*FOUR, "trainer.memory_gib=16"],
    "fast_24gib": [*FOUR, "trainer.memory_gib=24"],
    "fast_nf4": FOUR,
    "fast_fp8": ["model.precision=fp8"],
    "fast_fp8_r64": ["model.precision=fp8", "lora.r=64"],
    "fast_bf16_8gib": [*FOUR, BF16, "data.row_tokens=5120", "trainer.memory_gib=8"],
    "fast_bf16_10gib": [*FOUR, BF16, "trainer.memory_gib=10"],
    "fast_bf16": ["model.precision=bf16"],
    "unsloth_nf4": ["model.precision=nf4"],
    "cpu_bf16": ["model.precision=bf16", "trainer=cpu", "optim=adamw"],  # for a test that this still runs
}
PEERS = ("unsloth_trl_packed", "unsloth_trl_packed_kept", "unsloth_trl", "hf_trl")
LINES = {  # of the picture: what is drawn as one line, by the beginning of its names
    "medreason, fast engine, multiplied in fp8": ("fast_8", "fast_1", "fast_2", "fast_nf4", "fast_fp8"),
    "medreason, fast engine, multiplied in bf16": ("fast_bf16", "cpu_bf16"),
    "medreason, Unsloth's engine": ("unsloth_nf4",),
    "Unsloth with TRL, packed (less and more recomputation)": ("unsloth_trl_packed",),
    "Unsloth with TRL, not packed": ("unsloth_trl",),
    "transformers with TRL, not packed": ("hf_trl",),
}
ON_A_GPU = (*PEERS[:2], *(name for name in ENGINES if name != "cpu_bf16"), *PEERS[2:])
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#999999")
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
        "spared_layers": (record.get("memory") or {}).get("spared_layers"),
        "copies": (record.get("memory") or {}).get("copies"),
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


def line_of(name: str) -> str:
    """The label of the line that a result belongs to: that of the longest beginning of its name."""
    fitting = [(len(start), label) for label, starts in LINES.items() for start in starts if name.startswith(start)]
    return max(fitting)[1]


def draw(calls: list[dict[str, Any]]) -> "Figure":
    """Speed over peak memory, a line for each engine; other projects' are dashed.

    In times of Unsloth with TRL, packed, of the same call, where every call measured that: machines differ.
    """
    from matplotlib.figure import Figure

    bases = [
        next((one["tokens_per_second"] for one in call["results"] if one["name"] == "unsloth_trl_packed"), None)
        for call in calls
    ]
    relative = all(bases)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for call, base in zip(calls, bases, strict=True):
        for one in call["results"]:
            height = one["tokens_per_second"] / base if relative and base else one["tokens_per_second"]
            found.setdefault(line_of(one["name"]), []).append(
                (one["memory_gib"] or 0, height, one["tokens_per_second"])
            )
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    for label, color, marker in zip(LINES, COLOURS, "os^DvP", strict=True):
        points = sorted(found.get(label, []))
        if not points:
            continue
        line = "--" if "TRL" in label else "-"
        axes.plot([x for x, *_ in points], [y for _, y, _ in points], line, color=color, marker=marker, label=label)
        for memory, height, rate in points:
            told = f"{height:.1f}" if relative else f"{rate:,.0f}"
            axes.annotate(told, (memory, height), (0, 7), textcoords="offset points", ha="center", fontsize=10)
    axes.set_ylim(0, 1.12 * max(height for points in found.values() for _, height, _ in points))
    axes.set_xlim(left=0)
    axes.margins(x=0.08)
    made = calls[0]["provenance"]
    axes.set_xlabel("memory of the host, GiB" if on_cpu(made) else "peak GPU memory, GiB", fontsize=12)
    axes.set_ylabel("times Unsloth with TRL, packed" if relative else "tokens of documents per second", fontsize=12)
    axes.yaxis.set_major_formatter("{x:,.1f}" if relative else "{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=10)
    figure.suptitle(f"Training speed by memory, {made['device']}", fontsize=13)
    versions = [f"{name} {made['versions'][name]}" for name in ("torch", "unsloth", "trl") if made["versions"][name]]
    commits = sorted({(call["provenance"]["commit"] or "unknown")[:7] for call in calls})
    told = ", ".join([*versions, f"commit {' and '.join(commits)}"])
    figure.supxlabel(told, fontsize=9, color="#555555")
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
        expected = f" ({found['expected_gib']:.1f} expected)" if found.get("expected_gib") else ""
        rate, memory = found["tokens_per_second"], found["memory_gib"] or 0
        print(f"{name:24} {rate:>8,.0f} tokens/s  {memory:.1f} GiB{expected}", flush=True)
        made = provenance()
        calls = [{"provenance": made, "row_tokens": int(row_tokens), "results": results}]
        write_json(folder / "training_speed.json", {"calls": calls})
        draw(calls).savefig(folder / "training_speed.png", dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
