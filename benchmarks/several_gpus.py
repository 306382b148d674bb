"""Two GPUs of one machine beside one, the same rows in each step: speed, and whether the losses are the same.

usage: several_gpus.py MODEL_FOLDER ROWS_FILE OUT_FOLDER [STEPS] [ROW_TOKENS] [PRECISION...]
       MODEL_FOLDER of Mistral-7B's shape, random weights are exact for speed; PRECISIONs of model.precision, all three
       without. Writes OUT_FOLDER/several_gpus.json, after each way anew.

Whole runs of `python -m medreason.train`: one GPU that accumulates two rows a step, two GPUs with a row each. Tokens
per second are those of documents, padding left out; the median of the steps after the first third.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from training_speed import carry_out

from medreason.core.run_directory import provenance, read_json, read_metrics, series, write_json

DEVICES = 2
WAYS = {1: [f"trainer.accumulate={DEVICES}"], DEVICES: ["trainer=ddp", f"trainer.devices={DEVICES}"]}


def measure(precision: str, devices: int, model: str, rows: str, steps: int, row_tokens: int) -> dict[str, Any]:
    """Speed, losses and gradient norms of a run."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        said = carry_out([
            sys.executable, "-m", "medreason.train", f"model.path={model}", f"model.precision={precision}",
            "data=local", f"data.path={rows}", f"data.row_tokens={row_tokens}", "data.too_long=truncate",
            *WAYS[devices], "trainer.max_epochs=99", f"trainer.max_steps={steps}",
            f"trainer.validate_every_steps={steps}", "trainer.answer_questions=0", f"hydra.run.dir={run}",
        ])  # fmt: skip
        record = read_json(run / "run.json")
        if record.get("status") != "finished":
            raise RuntimeError(said[-2000:])
        metrics = read_metrics(run / "metrics.csv")
    rates, losses, norms = (series(metrics, f"train/{name}")[1] for name in ("tokens_per_second", "loss", "grad_norm"))
    return {
        "tokens_per_second": statistics.median(rates[len(rates) // 3 :]),
        "losses": losses,
        "grad_norms": norms,
        "val_loss": record["results"]["val_loss_after"],
        "memory_gib": record["results"]["peak_memory_gib"],
        "recompute": record["recompute"],
    }


def main(model: str, rows: str, out: str, steps: str = "16", row_tokens: str = "8192", *precisions: str) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for precision in precisions or ("fp8", "bf16", "nf4"):
        try:
            one, two = (measure(precision, n, model, rows, int(steps), int(row_tokens)) for n in (1, DEVICES))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"{precision}: {error}", flush=True)
            continue
        share = two["tokens_per_second"] / (DEVICES * one["tokens_per_second"])
        apart = max(abs(a - b) / a for a, b in zip(one["losses"], two["losses"], strict=True))
        norms = max(abs(a - b) / a for a, b in zip(one["grad_norms"], two["grad_norms"], strict=True))
        results[precision] = {
            "one": one, "two": two, "share_of_twice": share, "losses_apart": apart, "grad_norms_apart": norms,
        }  # fmt: skip
        print(
            f"{precision:5} one {one['tokens_per_second']:,.0f} tokens/s, two {two['tokens_per_second']:,.0f}: "
            f"{share:.1%} of twice; losses differ by {apart:.2%} at most, gradient norms by {norms:.2%}; "
            f"held-out loss {one['val_loss']:.4f}, {two['val_loss']:.4f}",
            flush=True,
        )
        write_json(folder / "several_gpus.json", {"provenance": provenance(), "results": results})


if __name__ == "__main__":
    main(*sys.argv[1:])
