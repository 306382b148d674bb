"""How far a base held in fewer bits is from the same in 16: loss and LoRA's gradients of the first step.

usage: gradient_fidelity.py MODEL ROWS_FILE [ROW_TOKENS] [ROWS] [PRECISION...]
       PRECISIONs are those of model.precision, without: fp8 nf4. MODEL is a folder or embedded:NAME.

Take real weights: those of an untrained model amplify from layer to layer whatever differs.
"""

import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from medreason.config import Precision, Recompute
from medreason.core.cli import composed
from medreason.data.corpus import read_split
from medreason.data.datamodule import MedicalReasoningData, PackedBatch
from medreason.models.load import import_unsloth, load_model, load_tokenizer, summed_loss


def first_step(model: Any, batches: list[PackedBatch]) -> tuple[float, Tensor]:
    """Mean loss of a target token of all batches, and the gradients of all adapters in one row, float64."""
    total = 0.0
    for batch in batches:
        tensors = {name: getattr(batch, name).to(model.device) for name in ("input_ids", "labels", "position_ids")}
        loss = summed_loss(model, replace(batch, **tensors))
        loss.backward()
        total += loss.item()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    joined = torch.cat([gradients[name].flatten().double().cpu() for name in sorted(gradients)])
    return total / sum(batch.targets for batch in batches), joined


def main(path: str, rows_file: str, row_tokens: str = "2048", rows: str = "2", *precisions: str) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    asked = [Precision.bf16, *(Precision(name) for name in precisions or ("fp8", "nf4"))]
    if not all(one.compiled for one in asked):
        import_unsloth()  # before transformers, which it changes
    config = composed(f"model.path={path}", "data=local", f"data.path={rows_file}", f"data.row_tokens={row_tokens}",
                      "data.too_long=truncate", "data.validation_share=0.02")  # fmt: skip
    data = MedicalReasoningData(config.data, read_split(config.data), load_tokenizer(config.model))
    data.setup()
    loader = data.train_dataloader()
    batches = [loader.batch(loader.order(0), index) for index in range(min(int(rows), len(loader)))]

    print(f"{len(batches)} rows of {int(row_tokens):,} tokens   first loss   on bf16's   gradient cosine")
    results: list[tuple[float, Tensor]] = []
    adapter: dict[str, Tensor] = {}
    for precision in asked:
        model = load_model(replace(config.model, precision=precision), config.lora, row_tokens=int(row_tokens),
                           recompute=Recompute.none, seed=1, copies=2)  # fmt: skip
        if adapter:  # engines draw theirs in orders of their own
            set_peft_model_state_dict(model, adapter)
        else:
            adapter = {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}
        results.append(first_step(model, batches))
        (exact, straight), (loss, gradients) = results[0], results[-1]
        turned = cosine_similarity(straight, gradients, dim=0).item()
        print(f"{precision.value:27} {loss:10.4f}   {loss / exact - 1:+9.2%}   {turned:15.4f}", flush=True)
        del model


if __name__ == "__main__":
    main(*sys.argv[1:])
