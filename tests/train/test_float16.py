"""GPUs without bfloat16: the base in float16, a scaled loss, steps that the scaler skips. On a CPU, which has both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from medreason.config import Algorithm, ConfigError, Decay, Format, OptimConfig, Precision, RunFailed
from medreason.core.cli import composed
from medreason.data.datamodule import PackedLoader
from medreason.data.tokenization import tokenize
from medreason.models.checks import check_float16, check_precision, lightning_precision
from medreason.models.load import trained_dtype
from medreason.models.prompts import Example
from medreason.train.finetuner import Finetuner
from medreason.train.metrics import StepMetrics

OPTIM = OptimConfig(Algorithm.adamw, 1e-2, 1.0, [0.9, 0.999], 1e-8, 0.0, 0, Decay.linear, 1.0)
Documents = Any  # what `tokenize` gives
OVERFLOWS = 2.0**22  # a loss scale under which gradients overflow, and two halvings later still


@pytest.fixture
def turing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a T4."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "Tesla T4")


@pytest.mark.usefixtures("turing")
def test_a_gpu_without_bfloat16_trains_in_float16_under_a_scaled_loss() -> None:
    trainer = composed("data=clinical_cases").trainer
    assert lightning_precision(trainer) == "16-mixed"
    assert trained_dtype("16-mixed") is torch.float16
    check_float16(trainer)


@pytest.mark.usefixtures("turing")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_a_gpu_without_bfloat16_would_do_wrongly_is_refused(precision: str) -> None:
    trainer = composed("data=clinical_cases", f"trainer.precision={precision}").trainer
    with pytest.raises(ConfigError, match=f"{precision}: Tesla T4 has no bfloat16.*use trainer.precision=auto"):
        check_float16(trainer)


@pytest.mark.usefixtures("turing")
@pytest.mark.parametrize("precision", [Precision.fp8, Precision.bf16])
def test_the_fast_engine_is_refused_where_its_numbers_are_unknown(precision: Precision) -> None:
    model = composed("data=clinical_cases", f"model.precision={precision.value}").model
    with pytest.raises(ConfigError, match=f"model.precision={precision.value}: .* needs a GPU of .* use model.*=nf4$"):
        check_precision(model)
    check_precision(composed("data=clinical_cases", "model.precision=nf4").model)


def test_elsewhere_auto_is_32_bits() -> None:
    assert lightning_precision(composed("data=clinical_cases", "trainer=cpu", "model=tiny").trainer) == "32-true"
    trainer = composed("data=clinical_cases", "trainer=cpu", "trainer.precision=16-mixed").trainer
    with pytest.raises(ConfigError, match="16-mixed needs a CUDA GPU"):
        check_float16(trainer)
    with pytest.raises(ConfigError, match="be auto, 32-true or bf16-mixed with"):
        composed("data=clinical_cases", "model=mistral_7b_fp8", "trainer.precision=16-mixed")


class Rows(L.pytorch.loggers.CSVLogger):
    """A logger that keeps what it is given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append({"step": float(step or 0), **metrics})


def fit(model: Any, documents: Documents, folder: Path, steps: int, scale: float, **options: Any) -> Any:
    """Trains with Lightning's float16 and a GradScaler on the CPU; module, trainer, logged rows."""
    logger = Rows(folder)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=logger, plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        callbacks=[StepMetrics(model)], log_every_n_steps=0, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, accumulate_grad_batches=2,
    )  # fmt: skip
    module = Finetuner(model, OPTIM, steps)
    trainer.fit(module, PackedLoader(documents, 512, pad_token=3, accumulate=2), **options)
    return module, trainer, logger.rows


@pytest.fixture(scope="module")
def documents(tokenizer: Any, cases: list[Example]) -> Documents:
    return tokenize(cases, tokenizer, Format.think)


def test_a_step_that_the_scaler_skips_is_neither_trained_nor_counted(
    make_model: Callable[..., Any], documents: Documents, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    module, trainer, rows = fit(model, documents, tmp_path, 3, OVERFLOWS)
    assert module.skipped_steps >= 2
    assert trainer.global_step == 3 and [row["step"] for row in rows] == [0, 1, 2]
    assert [row["train/lr"] for row in rows] == pytest.approx([1e-2, 1e-2 * 2 / 3, 1e-2 / 3]), "the schedule waits"
    assert rows[0]["train/skipped_steps"] == module.skipped_steps
    assert rows[0]["train/loss_scale"] == OVERFLOWS / 2**module.skipped_steps
    assert all(torch.isfinite(value).all() for value in model.parameters() if value.requires_grad)
    assert any(not torch.equal(before[name], value) for name, value in model.named_parameters() if name in before)
    said = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert len(said) == module.skipped_steps and "step 1 skipped: its gradients overflow float16" in said[0]


def test_a_scaled_loss_gives_the_gradients_of_an_unscaled_one(
    make_model: Callable[..., Any], documents: Documents, tmp_path: Path
) -> None:
    """Norms are logged, and gradients clipped, in their own size."""
    norms = [
        [row["train/grad_norm"] for row in fit(make_model(), documents, tmp_path / str(scale), 3, scale)[2]]
        for scale in (1.0, 1024.0)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.01)


def test_a_loss_that_is_no_number_ends_a_float16_run_too(
    make_model: Callable[..., Any], documents: Documents, tmp_path: Path
) -> None:
    model = make_model()
    next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))
    with pytest.raises(RunFailed, match="train/loss became nan at step 1"):
        fit(model, documents, tmp_path, 3, 1024.0)


def test_a_resumed_run_keeps_the_scale_and_the_count(
    make_model: Callable[..., Any], documents: Documents, tmp_path: Path
) -> None:
    module, trainer, _ = fit(make_model(), documents, tmp_path / "first", 2, OVERFLOWS)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    options = {"ckpt_path": tmp_path / "last.ckpt", "weights_only": True}
    resumed, again, rows = fit(make_model(), documents, tmp_path / "second", 3, 1.0, **options)
    assert resumed.skipped_steps == module.skipped_steps
    assert rows[0]["train/loss_scale"] == trainer.precision_plugin.scaler.get_scale() > 1.0
    assert again.global_step == 3
