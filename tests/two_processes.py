"""Trains for some steps on one process or, as Lightning's DDP, on two; test_two_processes.py compares them.

usage: two_processes.py ROWS_JSONL OUTPUT_FOLDER PROCESSES ROWS_PER_BATCH
"""

import unsloth  # noqa: F401, I001  # before anything that imports transformers
import json
import sys
from pathlib import Path

import lightning as L
import torch

from conftest import TINY, data_config, lora
from medreason.config import Algorithm, Decay, OptimConfig, Recompute
from medreason.corpus import read_split
from medreason.datamodule import MedicalReasoningData
from medreason.finetuner import Finetuner
from medreason.model import load_model, load_tokenizer

rows, folder, processes, rows_per_batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
config = data_config(rows, "deduplicate=off", "validation_share=0.3", "row_tokens=600")
data = MedicalReasoningData(
    config, read_split(config), load_tokenizer(TINY), rows_per_batch=rows_per_batch, accumulate=2
)
data.setup()
model = load_model(TINY, lora(), row_tokens=600, recompute=Recompute.none, seed=1)
torch.manual_seed(2)
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter, std=0.05)
optim = OptimConfig(Algorithm.adamw, 1e-2, 1.0, [0.9, 0.999], 1e-8, 0.0, 0, Decay.constant, 1.0)
steps = data.total_steps(1, -1, processes)


class Seen(L.Callback):
    """Notes the rows that this process trains on, and the losses."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
        if batch.tokens:
            self.rows += batch.input_ids.tolist()
        if trainer.global_step > len(self.losses):
            self.losses.append(trainer.callback_metrics["train/loss"].item())
            self.norms.append(trainer.callback_metrics["train/grad_norm"].item())


seen = Seen()
trainer = L.Trainer(
    accelerator="cpu",
    devices=processes,
    strategy="ddp" if processes > 1 else "auto",
    max_epochs=1,
    accumulate_grad_batches=2,
    logger=L.pytorch.loggers.CSVLogger(folder),
    callbacks=[seen],
    log_every_n_steps=1,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
    use_distributed_sampler=False,
    num_sanity_val_steps=0,
)
trainer.fit(Finetuner(model, optim, steps), data)
trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
torch.save(trained, folder / f"weights{trainer.global_rank}.pt")
content = {
    "rows": seen.rows,
    "losses": seen.losses,
    "norms": seen.norms,
    "validation": trainer.callback_metrics["val/loss"].item(),
    "steps": trainer.global_step,
    "expected_steps": steps,
    "position": data.loaders["train"].state_dict(),
}
(folder / f"seen{trainer.global_rank}.json").write_text(json.dumps(content))
