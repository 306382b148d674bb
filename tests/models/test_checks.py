"""Runs that cannot do what they are asked to: refused, or told, before anything slow."""

from pathlib import Path
from typing import Any

import pytest

from medreason.config import DECODER_LINEARS, ConfigError, steps_of
from medreason.core.run_directory import check_resumed
from medreason.models.checks import check_steps, describe_few
from medreason.models.load import check_lora, positions
from medreason.train.fit import taught
from medreason.train.run import save_config
from support import TINY, composed, lora

CKPT = Path("runs/a/checkpoints/last.ckpt")


def told(*overrides: str, rows: int = 100, total: int = 50, resumed: Path | None = None, behind: int = 0) -> list[str]:
    return check_steps(composed("model=tiny", "trainer=cpu", *overrides), rows, total, resumed, behind)


def test_a_run_that_does_what_it_is_asked_to_is_told_nothing() -> None:
    assert told() == told("trainer.max_steps=50") == told(resumed=CKPT, behind=49) == []
    assert told("optim.warmup_steps=0", rows=1, total=1) == []
    assert told("optim.warmup_steps=49") == [], "the last step has the whole learning rate"


def test_one_step_under_warm_up_is_refused_for_it_would_teach_nothing() -> None:
    with pytest.raises(ConfigError, match=r"optim.warmup_steps=5: the one optimizer step of this run \(1 row\) would"):
        told("optim.warmup_steps=5", rows=1, total=1)
    with pytest.raises(ConfigError, match=r"\(100 rows\) .* set optim.warmup_steps=0"):
        told("optim.warmup_steps=1", "trainer.max_steps=1", total=1)


@pytest.mark.parametrize(("warmup", "total", "share"), [(50, 50, "98%"), (5, 2, "20%"), (100, 50, "49%")])
def test_a_warm_up_as_long_as_the_run_is_told_with_the_learning_rate_it_gets_to(
    warmup: int, total: int, share: str
) -> None:
    (line,) = told(f"optim.warmup_steps={warmup}", total=total)
    assert f"optim.warmup_steps={warmup} is no shorter than the run of {total} optimizer steps" in line
    assert f"gets to {share} of optim.lr at most" in line


def test_what_is_told_of_a_warm_up_is_what_the_schedule_does() -> None:
    import torch

    from medreason.train.optimizer import build_schedule

    for share, warmup, total in ((1, 1, 1), (5, 5, 2), (5, 5, 5), (5, 5, 6), (0, 0, 1), (0.5, 3, 6), (0.05, 0, 9)):
        for decay in ("linear", "cosine", "constant"):
            optim = composed("model=tiny", f"optim.warmup_steps={share}", f"optim.decay={decay}", "optim.lr=1").optim
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
            schedule = build_schedule(optimizer, optim, total)
            rates = []
            for _ in range(total):
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                schedule.step()
            assert max(rates) == pytest.approx(min(1.0, (total - 1) / warmup) if warmup else 1.0)


def test_a_short_run_is_told_what_would_make_more_steps_of_its_rows() -> None:
    def few(*overrides: str, rows: int, total: int, longest: int = 500, held_out: int = 40) -> list[str]:
        config = composed("model=tiny", "data=local", "data.path=x", *overrides)
        return describe_few(config, rows, total, longest, held_out)

    (line,) = few(rows=18, total=9)  # 200 rows of the hub's
    assert line == (
        "9 optimizer steps: few to learn from; trainer.max_epochs=4 makes 36, trainer.accumulate=1 18, "
        "data.row_tokens=2048 about 36"
    )
    (line,) = few("trainer=cpu", "trainer.max_epochs=2", rows=4, total=8, longest=5000)
    assert line == "8 optimizer steps: few to learn from; trainer.max_epochs=8 makes 32", "no row could be shorter"
    assert few(rows=18, total=9, held_out=3)[1] == (
        "3 held-out examples to pick the best step by: nearly chance; data.validation_share=0.2 holds out more"
    )
    assert few(rows=60, total=30) == few("trainer.max_steps=9", rows=60, total=9) == []
    assert few("data.max_validation_rows=3", rows=60, total=30, held_out=3) == []


@pytest.mark.parametrize(
    ("value", "steps"), [("0.05", 45), ("10", 10), ("1", 1), ("1e3", 1000), ("0.0001", 1), ("0.9999", 900)]
)
def test_a_number_of_steps_may_be_a_share_of_the_run(value: str, steps: int) -> None:
    trainer = composed("model=tiny", f"trainer.validate_every_steps={value}").trainer
    assert steps_of(trainer.validate_every_steps, 900) == steps
    optim = composed("model=tiny", f"optim.warmup_steps={value}").optim
    assert steps_of(optim.warmup_steps, 900, least=0) == (steps if value != "0.0001" else 0)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "-0.1"])
def test_what_is_neither_a_share_nor_a_number_of_steps_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer.validate_every_steps must be (a share of the run's steps|at most)"):
        composed("model=tiny", f"trainer.validate_every_steps={value}")
    if value != "0":
        with pytest.raises(ConfigError, match=r"optim.warmup_steps must be (a share .* at least 0|at most)"):
            composed("model=tiny", f"optim.warmup_steps={value}")


def test_a_checkpoint_beyond_the_end_of_the_run_is_refused_and_one_at_it_is_told() -> None:
    with pytest.raises(ConfigError, match=r"last.ckpt: it has 14 optimizer steps behind it, and this run ends after 5"):
        told(total=5, resumed=CKPT, behind=14)
    (line,) = told(resumed=CKPT, behind=50)
    assert f"ckpt={CKPT} has all 50 optimizer steps behind it: nothing is trained, only measured" in line


def test_steps_that_the_rows_do_not_suffice_for_are_told() -> None:
    (line,) = told("trainer.max_steps=60", total=50)
    assert "the run ends with its epochs, after 50 optimizer steps of trainer.max_steps=60" in line
    (line,) = told("trainer.accumulate=8", "trainer.rows_per_batch=2", rows=3, total=50)
    assert "an optimizer step asks for 16 rows" in line and "an epoch has 3" in line


@pytest.mark.parametrize("written", ["all-linear", "[all-linear]", "[q_proj,all-linear]"])
def test_all_linear_means_the_linears_of_every_decoder_layer(written: str) -> None:
    assert sorted(composed(f"lora.target_modules={written}").lora.target_modules) == sorted(DECODER_LINEARS)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("[lm_head]", "embeddings and head would be trained whole, and no estimate counts them, got ['lm_head']"),
        ("[q_proj,model.embed_tokens]", "got ['model.embed_tokens']"),
        ("[]", "name linear layers, or be all-linear, got []"),
        ("[q_proj,3]", "name linear layers, or be all-linear"),
        ("null", "name linear layers, or be all-linear"),
        ("7", "name linear layers, or be all-linear"),
    ],
)
def test_targets_that_are_no_linears_are_refused(written: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        composed(f"lora.target_modules={written}")
    assert str(refused.value).startswith("lora.target_modules must ") and says in str(refused.value)


@pytest.mark.parametrize("target", ["query", "input_layernorm", "self_attn", "output", "qproj"])
def test_a_target_that_no_layer_is_named_after_is_refused_before_weights_are_loaded(target: str) -> None:
    with pytest.raises(ConfigError, match=f"lora.target_modules: the model has no '{target}'; it has down_proj, "):
        check_lora(TINY, lora(target_modules=["q_proj", target]))
    check_lora(TINY, lora())


def test_the_positions_are_those_that_the_model_was_made_for() -> None:
    assert positions(TINY) == 4096


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lora.alpha=2r", "lora.alpha was 16.0 when it was saved, and is 32.0 here"),
        ("lora.rslora=true", "lora.rslora was False"),
        ("optim.lr=1e-3", "optim.lr was 0.0002 when it was saved, and is 0.001 here"),
        ("optim.weight_decay=0", "optim.weight_decay was 0.01"),
        ("optim.algorithm=adamw_8bit", "optim.algorithm was adamw when it was saved, and is adamw_8bit here"),
        ("data.format=huatuo", "data.format was think"),
    ],
)
def test_a_setting_that_a_checkpoint_brings_along_cannot_be_another_one(
    override: str, says: str, tmp_path: Path
) -> None:
    save_config(composed("model=tiny"), tmp_path)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(ConfigError, match="resume with the settings it was trained with") as refused:
        check_resumed(composed("model=tiny", override), checkpoint)
    assert says in str(refused.value)
    check_resumed(composed("model=tiny", "trainer.max_steps=9", "optim.warmup_steps=1"), checkpoint)
    check_resumed(composed("model=tiny", override), tmp_path / "elsewhere" / "checkpoints" / "last.ckpt")


def test_an_adapter_of_zeros_is_seen(make_model: Any) -> None:
    import torch

    model = make_model()
    assert taught(model)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(value)
    assert not taught(model)
