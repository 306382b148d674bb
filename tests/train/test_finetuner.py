import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger

from medreason.config import Algorithm, Decay, Format, OptimConfig, RunFailed
from medreason.data.datamodule import PackedLoader
from medreason.data.tokenization import tokenize
from medreason.models.prompts import Example
from medreason.train.finetuner import AdapterMismatch, Finetuner
from medreason.train.metrics import Step, StepLine, StepMetrics

OPTIM = OptimConfig(Algorithm.adamw, 1e-2, 1.0, [0.9, 0.999], 1e-8, 0.0, 0, Decay.constant, 0.0)


def trained(model: Any, documents: list[Any], steps: int, folder: Path, rows: int = 1, accumulate: int = 1) -> Any:
    module = Finetuner(model, OPTIM, steps)
    logger = L.pytorch.loggers.CSVLogger(folder)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, accumulate_grad_batches=accumulate, logger=logger, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    loader = PackedLoader(documents, 1024, pad_token=3, rows_per_batch=rows, accumulate=accumulate)
    trainer.fit(module, loader)
    trainer.save_checkpoint(folder / "last.ckpt")
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return trainer.callback_metrics["train/loss"].item(), trainer.callback_metrics["train/grad_norm"].item(), weights


def test_accumulating_four_rows_equals_four_rows_at_once(
    make_model: Callable[..., Any], tokenizer: Any, cases: list[Example], tmp_path: Path
) -> None:
    documents = tokenize(cases[:20], tokenizer, Format.think)  # uneven rows: a mean of means would differ
    once = trained(make_model(), documents, 1, tmp_path / "a", rows=4, accumulate=1)
    accumulated = trained(make_model(), documents, 1, tmp_path / "b", rows=1, accumulate=4)
    assert accumulated[0] == pytest.approx(once[0], rel=1e-5)
    assert accumulated[1] == pytest.approx(once[1], rel=1e-4)
    batches = list(PackedLoader(documents, 1024, pad_token=3, accumulate=4))
    assert len(batches) >= 4
    assert len({batch.targets for batch in batches[:4]}) > 1


def test_the_last_short_step_of_an_epoch_counts_its_own_tokens(
    make_model: Callable[..., Any], tokenizer: Any, cases: list[Example], tmp_path: Path
) -> None:
    documents = tokenize(cases[:4], tokenizer, Format.think)
    short = trained(make_model(), documents, 1, tmp_path / "a", accumulate=64)
    whole = trained(make_model(), documents, 1, tmp_path / "b", rows=8)
    assert short[0] == pytest.approx(whole[0], rel=1e-5)
    assert short[1] == pytest.approx(whole[1], rel=1e-4)


class Rows(Logger):
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    name, version = "rows", "0"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append({"step": step} | metrics)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


def test_each_step_is_written_with_its_own_numbers(
    make_model: Callable[..., Any], tokenizer: Any, cases: list[Example]
) -> None:
    loader = PackedLoader(tokenize(cases[:20], tokenizer, Format.think), 512, pad_token=3, accumulate=2)
    batches = list(loader)
    assert len(batches) >= 6
    model, logger = make_model(), Rows()
    metrics = StepMetrics(model)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, accumulate_grad_batches=2, logger=logger, log_every_n_steps=0,
        callbacks=[metrics, StepLine(metrics, 3)], enable_model_summary=False, enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(Finetuner(model, OPTIM, 3), loader)
    rows = logger.rows
    tokens, targets = ([sum(getattr(b, name) for b in batches[i : i + 2]) for i in (0, 2, 4)] for name in NAMES)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert [row["train/tokens"] for row in rows] == [sum(tokens[: i + 1]) for i in range(3)]
    shares = [row["train/tokens_per_second"] / row["train/targets_per_second"] for row in rows]
    assert shares == pytest.approx([own / learned for own, learned in zip(tokens, targets, strict=True)])
    assert len(set(shares)) == 3 and all(0 <= row["train/data_wait"] < 1 for row in rows)
    assert len({row["train/loss"] for row in rows}) == 3 and all(row["train/grad_norm"] > 0 for row in rows)


NAMES = ("tokens", "targets")


def test_a_step_is_written_once_the_next_is_under_way_and_before_a_checkpoint(
    make_model: Callable[..., Any], tokenizer: Any, cases: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, which is not waited for."""
    seen: list[tuple[int, int]] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
            seen.append((trainer.global_step, len(logger.rows)))

    loader = PackedLoader(tokenize(cases[:20], tokenizer, Format.think), 512, pad_token=3)
    model, logger = make_model(), Rows()
    metrics = StepMetrics(model)
    monkeypatch.setattr("medreason.train.metrics.done_at_once", lambda device: False)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, logger=logger, log_every_n_steps=0, callbacks=[metrics, Watch()],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Finetuner(model, OPTIM, 3), loader)
    assert seen == [(1, 0), (2, 1), (3, 2)] and len(logger.rows) == 3
    metrics.pending = Step(7, 0, {"train/loss": torch.tensor(2.0)}, torch.ones(3), time.perf_counter(), 0.0, 0.0)
    before = metrics.total
    assert metrics.state_dict() == {"total": before + 1} and logger.rows[-1]["step"] == 7
    metrics.pending = Step(8, 0, {"train/loss": torch.tensor(math.nan)}, torch.ones(3), time.perf_counter(), 0.0, 0.0)
    with pytest.raises(RunFailed, match="train/loss became nan at step 9"):
        metrics.state_dict()


def test_a_checkpoint_holds_the_adapter_and_not_the_base(
    make_model: Callable[..., Any], tokenizer: Any, cases: list[Example], tmp_path: Path
) -> None:
    _, _, weights = trained(make_model(), tokenize(cases[:4], tokenizer, Format.think), 1, tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {f"model.{name}" for name in weights}
    assert all(torch.equal(checkpoint["state_dict"][f"model.{name}"], value) for name, value in weights.items())


def test_a_checkpoint_of_another_rank_is_refused(make_model: Callable[..., Any]) -> None:
    checkpoint: dict[str, Any] = {"state_dict": Finetuner(make_model(), OPTIM, 1).state_dict()}
    Finetuner(make_model(), OPTIM, 1).on_save_checkpoint(checkpoint)
    Finetuner(make_model(), OPTIM, 1).on_load_checkpoint(checkpoint)
    with pytest.raises(AdapterMismatch, match=r"adapter is not this run's: .*lora_A"):
        Finetuner(make_model(r=8), OPTIM, 1).on_load_checkpoint(checkpoint)


def test_the_saved_adapter_loads_in_plain_transformers_and_peft(make_model: Callable[..., Any], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from medreason.models.embedded import materialize

    model = make_model()
    model.save_pretrained(tmp_path)
    # in the precision that Unsloth chose for this CPU, from which the fixture went back to 32 bits
    base = AutoModelForCausalLM.from_pretrained(materialize("tiny"), dtype=model.config.dtype).float()
    plain = PeftModel.from_pretrained(base, tmp_path)
    tokens = torch.arange(6, 40)[None]
    with torch.no_grad():
        assert torch.allclose(plain(input_ids=tokens).logits, model(input_ids=tokens).logits, atol=1e-5)
