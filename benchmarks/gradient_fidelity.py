"""How far an engine is from the plain computation on the same base: loss and LoRA's gradients of the first step.

usage: gradient_fidelity.py MODEL ROWS_FILE [ROW_TOKENS] [ROWS] [WAY...]
       WAYs are those of WAYS, all that this machine knows without. MODEL is a folder or embedded:NAME.

The plain computation is transformers' and PEFT's, each document alone, on the base in bf16; for bases held in four bits
on what bitsandbytes makes of those bits. Take real weights: those of an untrained model amplify from layer to layer
whatever differs.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the package is not installed
from medreason.config import ComputeDtype, ConfigError, LoraConfig, ModelConfig, Precision, Recompute, TrainingEngine
from medreason.core.cli import composed
from medreason.data.corpus import read_split
from medreason.data.datamodule import MedicalReasoningData, PackedBatch
from medreason.models.checks import check_precision
from medreason.models.load import import_unsloth, load_model, load_tokenizer, local_path, summed_loss

WAYS = {
    "fast_bf16": (Precision.bf16, TrainingEngine.fast, ComputeDtype.auto),
    "fast_fp8": (Precision.fp8, TrainingEngine.fast, ComputeDtype.fp8),
    "fast_nf4_in_fp8": (Precision.nf4, TrainingEngine.fast, ComputeDtype.fp8),
    "fast_nf4_in_bf16": (Precision.nf4, TrainingEngine.fast, ComputeDtype.bf16),
    "unsloth_nf4": (Precision.nf4, TrainingEngine.unsloth, ComputeDtype.auto),
}


def plain_model(model: ModelConfig, lora: LoraConfig) -> Any:
    """transformers' model in bf16 with PEFT's adapter, on the GPU if there is one."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from medreason.engine.layers import device_here, four_bits

    four = {"quantization_config": four_bits(torch.bfloat16)} if model.precision is Precision.nf4 else {}
    base: Any = AutoModelForCausalLM.from_pretrained(
        local_path(model), dtype=torch.bfloat16, device_map={"": device_here()}, **four
    )
    if four:
        base = base.dequantize()
    settings = PeftConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, settings)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted.train()


def plain_loss(model: Any, batch: PackedBatch) -> Tensor:
    """Summed over the targets of a row's documents, each alone."""
    total, start = torch.zeros((), device=model.device), 0
    for length in batch.lengths:
        tokens, labels = (one.flatten()[start : start + length] for one in (batch.input_ids, batch.labels))
        logits = model(input_ids=tokens[None], use_cache=False).logits[0].float()
        total = total + cross_entropy(logits[:-1], labels[1:], reduction="sum")
        start += length
    return total


def first_step(model: Any, batches: list[PackedBatch], loss_of: Any) -> tuple[float, Tensor]:
    """Mean loss of a target token of all batches, and the gradients of all adapters in one row, float64."""
    total = 0.0
    for batch in batches:
        tensors = {name: getattr(batch, name).to(model.device) for name in ("input_ids", "labels", "position_ids")}
        loss = loss_of(model, replace(batch, **tensors))
        loss.backward()
        total += loss.item()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    joined = torch.cat([gradients[name].flatten().double().cpu() for name in sorted(gradients)])
    return total / sum(batch.targets for batch in batches), joined


def main(path: str, rows_file: str, row_tokens: str = "2048", rows: str = "2", *names: str) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    asked = names or tuple(WAYS)
    if "unsloth_nf4" in asked:
        import_unsloth()  # before transformers, which it changes
    config = composed(f"model.path={path}", "data=local", f"data.path={rows_file}", f"data.row_tokens={row_tokens}",
                      "data.too_long=truncate", "data.validation_share=0.02")  # fmt: skip
    data = MedicalReasoningData(config.data, read_split(config.data), load_tokenizer(config.model))
    data.setup()
    loader = data.train_dataloader()
    batches = [loader.batch(loader.order(0), index) for index in range(min(int(rows), len(loader)))]

    print(f"{len(batches)} rows of {int(row_tokens):,} tokens   first loss   on the plain one's   gradient cosine")
    exact: dict[bool, tuple[float, Tensor]] = {}  # by whether the base is held in four bits
    adapter: dict[str, Tensor] = {}
    for name in asked:
        precision, engine, compute = WAYS[name]
        model = replace(config.model, precision=precision, engine=engine, compute_dtype=compute)
        try:
            check_precision(model)
        except ConfigError as error:
            print(f"{name}: {error}")
            continue
        four = precision is Precision.nf4
        if four not in exact:
            plain = plain_model(model, config.lora)
            if adapter:
                set_peft_model_state_dict(plain, adapter)
            else:
                with torch.no_grad():  # B is zero at first, and then A has no gradient
                    for label, parameter in plain.named_parameters():
                        if "lora_B" in label:
                            parameter.normal_(std=1e-3)
                adapter = {key: value.clone() for key, value in get_peft_model_state_dict(plain).items()}
            exact[four] = first_step(plain, batches, plain_loss)
            del plain
        tried = load_model(model, config.lora, row_tokens=int(row_tokens), recompute=Recompute.none, seed=1, copies=1)
        set_peft_model_state_dict(tried, adapter)
        loss, gradients = first_step(tried, batches, summed_loss)
        turned = cosine_similarity(exact[four][1], gradients, dim=0).item()
        print(f"{name:27} {loss:10.4f}   {loss / exact[four][0] - 1:+17.2%}   {turned:15.4f}", flush=True)
        del tried


if __name__ == "__main__":
    main(*sys.argv[1:])
