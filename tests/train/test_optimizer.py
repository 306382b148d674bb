from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from medreason.config import Algorithm, Decay, OptimConfig
from medreason.train.optimizer import build_optimizer, build_schedule

CONFIG = OptimConfig(Algorithm.adamw, 1e-3, 1.0, [0.9, 0.999], 1e-8, 0.0, 4, Decay.linear, 1.0)


def adapter() -> list[tuple[str, nn.Parameter]]:
    frozen = nn.Parameter(torch.ones(4), requires_grad=False)
    return [("q.weight", frozen), *((f"q.{name}", nn.Parameter(torch.ones(64, 64))) for name in ("lora_A", "lora_B"))]


def test_loraplus_gives_b_its_own_rate_and_nothing_frozen_is_optimized() -> None:
    a, b = build_optimizer(adapter(), replace(CONFIG, loraplus_ratio=16.0)).param_groups
    assert (a["lr"], b["lr"]) == (1e-3, 1.6e-2)
    assert len(a["params"]) == len(b["params"]) == 1


@pytest.mark.parametrize(("decay", "late"), [(Decay.linear, 0.5), (Decay.cosine, 0.5), (Decay.constant, 1.0)])
def test_rates_warm_up_and_decay(decay: Decay, late: float) -> None:
    optimizer = build_optimizer(adapter(), CONFIG)
    schedule = build_schedule(optimizer, replace(CONFIG, decay=decay), total_steps=24)
    rates: list[Any] = []
    for _ in range(24):
        rates.append(optimizer.param_groups[0]["lr"] / 1e-3)
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert rates[14] == pytest.approx(late)


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_every_optimizer_steps_on_this_machine(algorithm: Algorithm) -> None:
    parameters = adapter()
    optimizer = build_optimizer(parameters, replace(CONFIG, algorithm=algorithm))
    for _, parameter in parameters[1:]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for _, parameter in parameters[1:]:
        assert parameter.detach().mean().item() == pytest.approx(1 - 1e-3, abs=1e-4)
