"""Training in float16, as a GPU without bfloat16 must, and in bfloat16, beside float32 on the same rows.

usage: float16.py MODEL ROWS_FILE OUT_FOLDER [STEPS] [SETTING...]
       MODEL: embedded:smollm2_135m, or a model's folder. A GPU with bfloat16 computes all three. SETTINGs of training
       runs come last, such as model.precision=half. Writes OUT_FOLDER/float16.json.

Whole runs of `python -m medreason.train`: trainer.precision=32-true (the base in bfloat16), 16-mixed (the base in
float16, the loss scaled), and a base in float32, which no setting asks for.
"""

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from training_speed import carry_out

from medreason.core.run_directory import provenance, read_json, read_metrics, series, write_json

NORMS = 20  # steps whose gradient norms are compared
TRAIN = "from medreason.train.run import main; main()"
FLOAT32 = "import torch, medreason.models.load as m; m.trained_dtype = lambda _: torch.float32"
WAYS = {
    "float32": ("32-true", f"{FLOAT32}; {TRAIN}"),
    "bfloat16": ("32-true", TRAIN),
    "float16": ("16-mixed", TRAIN),
}


def measure(way: str, model: str, rows: str, steps: int, more: tuple[str, ...]) -> dict[str, Any]:
    """Losses, gradient norms and what the scaler did in a run."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        precision, code = WAYS[way]
        preset = ["model=smollm2_135m"] if model.startswith("embedded:") else [f"model.path={model}"]
        said = carry_out([
            sys.executable, "-c", code, *preset, "data=local", f"data.path={rows}",
            "data.row_tokens=4096", "data.too_long=truncate", "trainer.accumulate=1", f"trainer.precision={precision}",
            "trainer.max_epochs=99", f"trainer.max_steps={steps}", f"trainer.validate_every_steps={steps}",
            "trainer.answer_questions=0", "optim.warmup_steps=5", f"hydra.run.dir={run}", *more,
        ])  # fmt: skip
        record = read_json(run / "run.json")
        if record.get("status") != "finished":
            raise RuntimeError(said[-2000:])
        metrics = read_metrics(run / "metrics.csv")
    found: dict[str, Any] = {name: series(metrics, f"train/{name}")[1] for name in ("loss", "grad_norm", "loss_scale")}
    results = record["results"]
    return found | {
        "val_loss_before": results["val_loss_before"],
        "val_loss_after": results["val_loss_after"],
        "skipped_steps": results.get("skipped_steps", 0),
    }


def main(model: str, rows: str, out: str, steps: str = "100", *more: str) -> None:
    found: dict[str, Any] = {}
    for way in WAYS:
        try:
            found[way] = measure(way, model, rows, int(steps), more)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"{way}: {error}", flush=True)
    for way, one in found.items():
        print(
            f"{way:8} held-out loss {one['val_loss_before']:.4f} -> {one['val_loss_after']:.4f}; first gradient norm "
            f"{one['grad_norm'][0]:.4f}; skipped steps {one['skipped_steps']}",
            flush=True,
        )
    for one, other in itertools.combinations(found, 2):
        pairs = zip(found[one]["grad_norm"][:NORMS], found[other]["grad_norm"][:NORMS], strict=True)
        apart = [abs(b / a - 1) for a, b in pairs]
        loss = found[other]["val_loss_after"] / found[one]["val_loss_after"] - 1
        print(
            f"{other} beside {one}: held-out loss after {loss:+.2%}; gradient norms of the first {len(apart)} steps "
            f"differ by {sum(apart) / len(apart):.2%} on average, {max(apart):.2%} at most"
        )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "float16.json", {"provenance": provenance(), "settings": list(more), "results": found})


if __name__ == "__main__":
    main(*sys.argv[1:])
