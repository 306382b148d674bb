"""One peer of this project, training on the same rows: prints its speed as a line of JSON.

usage: peers.py unsloth_trl|unsloth_trl_packed|unsloth_trl_packed_kept|hf_trl MODEL_FOLDER ROWS_FILE STEPS ROW_TOKENS

unsloth_trl              Unsloth's 4-bit model in TRL's SFTTrainer, as notebooks have it: 4 rows x 4, no packing
unsloth_trl_packed       the same with TRL's packing, 4 rows of ROW_TOKENS
unsloth_trl_packed_kept  the same without recomputation: its fastest, where memory is plentiful
hf_trl                   transformers, PEFT and bitsandbytes in TRL's SFTTrainer, 4 rows x 4, no packing

LoRA r=16 on all seven linears. Tokens are those of documents, padding left out; a third of the steps is warm-up.
Without a GPU the peers train in 16 bits instead of 4, for a test that they still run.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def unsloth_model(path: str, row_tokens: int) -> Any:
    return unsloth_with(path, row_tokens, "unsloth" if on_gpu() else False)


def unsloth_kept(path: str, row_tokens: int) -> Any:
    return unsloth_with(path, row_tokens, False)


def unsloth_with(path: str, row_tokens: int, checkpointing: str | bool) -> Any:
    from unsloth import FastLanguageModel

    gpu = on_gpu()
    model, _ = FastLanguageModel.from_pretrained(path, max_seq_length=row_tokens, load_in_4bit=gpu)
    return FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=16, target_modules=LINEARS, use_gradient_checkpointing=checkpointing
    )


def hf_model(path: str, row_tokens: int) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings: dict[str, Any] = {"dtype": torch.bfloat16}
    if on_gpu():
        settings |= {
            "device_map": {"": 0},
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            ),
        }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(path, **settings)
    if on_gpu():
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=LINEARS, task_type="CAUSAL_LM"))


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


PEERS: dict[str, tuple[Callable[[str, int], Any], bool]] = {  # the model, whether rows are packed
    "unsloth_trl": (unsloth_model, False),
    "unsloth_trl_packed": (unsloth_model, True),
    "unsloth_trl_packed_kept": (unsloth_kept, True),
    "hf_trl": (hf_model, False),
}


def measure(name: str, path: str, rows: str, steps: int, row_tokens: int) -> dict[str, Any]:
    build, packing = PEERS[name]
    if build is not hf_model or not on_gpu():  # TRL's fused loss is a GPU kernel; Unsloth brings torch's for a CPU
        import unsloth  # noqa: F401  # before trl
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from medreason.config import Format
    from medreason.core.cli import composed
    from medreason.data.corpus import read_split
    from medreason.models.load import load_tokenizer, local_path
    from medreason.models.prompts import completion_text, prompt_text

    config = composed(f"model.path={path}", f"data.path={rows}", "data=local", "model.precision=half")
    tokenizer = load_tokenizer(config.model)
    split = read_split(config.data)
    texts = [
        prompt_text(tokenizer, one.question, Format.think) + completion_text(one, Format.think) + tokenizer.eos_token
        for one in split.examples(split.train)
    ]
    together = 1 if packing else 4
    recomputed = on_gpu() and build is not unsloth_kept
    texts *= -(-steps * 16 * together // len(texts))
    counts: list[int] = []
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if on_gpu():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = SFTTrainer(
            model=build(local_path(config.model), row_tokens),
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"text": texts}),
            callbacks=[Clock()],
            args=SFTConfig(
                folder, per_device_train_batch_size=4, gradient_accumulation_steps=together, max_steps=steps,
                max_length=row_tokens, packing=packing, learning_rate=2e-4, warmup_steps=5, optim="adamw_8bit"
                if on_gpu() else "adamw_torch", report_to="none", save_strategy="no", logging_steps=1,
                bf16=on_gpu(), use_cpu=not on_gpu(), dataset_num_proc=1, gradient_checkpointing=recomputed,
            ),
        )  # fmt: skip
        collate = trainer.data_collator

        def counted(examples: Any) -> Any:
            batch = collate(examples)
            counts.append(int((batch["input_ids"] != tokenizer.pad_token_id).sum()))
            return batch

        trainer.data_collator = counted
        trainer.train()
    warm = steps // 3
    tokens = sum(counts) / len(counts) * together  # of a step
    memory = torch.cuda.max_memory_reserved() / 2**30 if on_gpu() else None
    return {
        "name": name,
        "tokens_per_second": tokens * (len(ends) - 1 - warm) / (ends[-1] - ends[warm]),
        "memory_gib": memory,
        "steps": len(ends),
    }


if __name__ == "__main__":
    peer, model_path, rows_file, count, length = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    print("RESULT", json.dumps(measure(peer, model_path, rows_file, int(count), int(length))))
