"""LoRA's weights -> optimizer and learning-rate schedule."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medreason.config import Algorithm, Decay, OptimConfig, steps_of


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> list[dict[str, Any]]:
    """A and all else at `lr`, B at `lr x loraplus_ratio` (LoRA+, Hayou et al. 2024); frozen weights left out."""
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in parameters:
        if parameter.requires_grad:
            groups["lora_B" in name].append(parameter)
    return [
        {"params": groups[is_b], "lr": config.lr * (config.loraplus_ratio if is_b else 1.0)}
        for is_b in (False, True)
        if groups[is_b]
    ]


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig, *, scaled: bool = False
) -> Optimizer:
    """AdamW over the trainable parameters, its states in 32 or 8 bits.

    Under a `scaled` loss it is not fused: a fused one divides gradients by the scale itself, after they were clipped.
    """
    settings: dict[str, Any] = {"betas": tuple(config.betas), "eps": config.eps, "weight_decay": config.weight_decay}
    groups = parameter_groups(parameters, config)
    if config.algorithm is Algorithm.adamw_8bit:
        from bitsandbytes.optim import AdamW8bit

        optimizer: Optimizer = AdamW8bit(groups, **settings)
        return optimizer
    return AdamW(groups, fused=not scaled, **settings)


def settle_rates(schedule: LambdaLR) -> None:
    """Puts each learning rate where the schedule has it at its step.

    A resumed optimizer brings the rate of the course that its run was on; a run that is longer now has another one.
    """
    for group, base, share in zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * share(schedule.last_epoch)


def rate_at(config: OptimConfig, step: int, total_steps: int) -> float:
    """The learning rate of a run with `step` of its optimizer steps behind it."""
    schedule = build_schedule(AdamW([nn.Parameter(torch.zeros(1))], lr=config.lr), config, total_steps)
    return float(config.lr * schedule.lr_lambdas[0](step))


def describe_course(config: OptimConfig, behind: int, planned: int, total_steps: int) -> str:
    """A line on the learning rate from here on, of a run that was planned for another number of steps."""
    before, now = (rate_at(config, behind, steps) for steps in (planned, total_steps))
    if before == now and config.decay is Decay.constant:
        return f"learning rate: it stays {now:.2e}, to step {total_steps} instead of {planned}"
    then = {Decay.linear: "falls in a line to 0", Decay.cosine: "falls along a cosine to 0", Decay.constant: "stays"}
    return (
        f"learning rate: it was to end at step {planned} and ends at step {total_steps} now; it goes on with {now:.2e} "
        f"(it would have been {before:.2e}) and {then[config.decay]}"
    )


def build_schedule(optimizer: Optimizer, config: OptimConfig, total_steps: int) -> LambdaLR:
    """Linear warm-up, then the decay, per optimizer step."""
    from transformers import get_scheduler

    name = {Decay.linear: "linear", Decay.cosine: "cosine", Decay.constant: "constant_with_warmup"}[config.decay]
    warmup = steps_of(config.warmup_steps, total_steps, least=0)
    schedule: LambdaLR = get_scheduler(name, optimizer, warmup, total_steps)
    return schedule
