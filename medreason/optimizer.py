"""LoRA's weights -> optimizer and learning-rate schedule."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from medreason.config import Algorithm, Decay, OptimConfig


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


def build_schedule(optimizer: Optimizer, config: OptimConfig, total_steps: int) -> LRScheduler:
    """Linear warm-up, then the decay, per optimizer step."""
    from transformers import get_scheduler

    name = {Decay.linear: "linear", Decay.cosine: "cosine", Decay.constant: "constant_with_warmup"}[config.decay]
    schedule: LRScheduler = get_scheduler(name, optimizer, config.warmup_steps, total_steps)
    return schedule
