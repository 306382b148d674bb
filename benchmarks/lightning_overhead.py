"""Steps per second of `Trainer.fit` or of a bare loop over the same model and rows.

usage: lightning_overhead.py bare|lightning MODEL ROWS_FILE [ROW_TOKENS] [STEPS] [PRECISION]
       MODEL is embedded:tiny on a CPU, a folder of Mistral-7B's shape on a GPU (random weights are exact for speed).

Each call is one process; compare calls made in turn on one machine. The first third of the steps is warm-up.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from medreason.core.cli import composed
from medreason.data.corpus import read_split
from medreason.models.load import import_unsloth, load_model, load_tokenizer, summed_loss

import_unsloth()
import lightning as L  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402

from medreason.data.datamodule import MedicalReasoningData, PackedBatch, PackedLoader  # noqa: E402
from medreason.train.finetuner import Finetuner  # noqa: E402
from medreason.train.metrics import StepMetrics  # noqa: E402
from medreason.train.optimizer import build_optimizer  # noqa: E402

OPTIM = composed().optim


def endless(loader: PackedLoader) -> Iterator[PackedBatch]:
    while True:
        yield from loader


def bare(model: Any, loader: PackedLoader, steps: int, precision: str, device: str) -> list[float]:
    """When each step ended, in seconds."""
    optimizer = build_optimizer(model.named_parameters(), OPTIM)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ends = []
    for _, host in zip(range(steps), endless(loader), strict=False):
        tensors = {name: getattr(host, name).to(device) for name in ("input_ids", "labels", "position_ids")}
        batch = replace(host, **tensors)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = summed_loss(model, batch) / batch.step_targets
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, OPTIM.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        ends.append(time.perf_counter())
    return ends


def inside_lightning(model: Any, loader: PackedLoader, steps: int, precision: Any, device: str) -> list[float]:
    """When each step ended, in seconds, with the callbacks and the logger of a run."""
    ends = []

    class Clock(L.Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, precision=precision, max_steps=steps,
        max_epochs=99,
        logger=CSVLogger(tempfile.mkdtemp(), flush_logs_every_n_steps=1), log_every_n_steps=0, limit_val_batches=0,
        callbacks=[StepMetrics(model), Clock()], enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Finetuner(model, OPTIM, steps), train_dataloaders=loader)
    return ends


def main(
    mode: str, path: str, rows: str, row_tokens: str = "8192", steps: str = "24", precision: str = "32-true"
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    held = "nf4" if device == "cuda" else "half"
    config = composed(f"model.path={path}", f"model.precision={held}", f"data.path={rows}",
                      f"data.row_tokens={row_tokens}", "data.too_long=truncate", "trainer.recompute=none")  # fmt: skip
    data = MedicalReasoningData(config.data, read_split(config.data), load_tokenizer(config.model))
    data.setup()
    recompute = config.trainer.recompute
    model = load_model(config.model, config.lora, row_tokens=int(row_tokens), recompute=recompute, seed=1)
    run = {"bare": bare, "lightning": inside_lightning}[mode]
    ends = run(model, data.train_dataloader(), int(steps), precision, device)[int(steps) // 3 :]
    rate = (len(ends) - 1) / (ends[-1] - ends[0])
    memory = f", {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB" if device == "cuda" else ""
    print(f"RESULT {mode} {precision}: {rate:.4f} steps/s, {rate * int(row_tokens):.0f} row tokens/s{memory}")


if __name__ == "__main__":
    main(*sys.argv[1:])
