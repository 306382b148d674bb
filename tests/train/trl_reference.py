"""Prints the loss that TRL's SFTTrainer reports for one step; test_trl.py runs it.

usage: trl_reference.py MODEL_DIR ADAPTER_DIR TEXTS_JSON
"""

import unsloth  # noqa: F401, I001  # TRL's fused loss is a GPU kernel; Unsloth puts torch's in its place on a CPU
import json
import sys
import tempfile

from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

base, adapter, texts = sys.argv[1:]
with open(texts) as file:  # noqa: PTH123
    rows = json.load(file)  # [{"prompt": ..., "completion": ...}]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=True)
with tempfile.TemporaryDirectory() as folder:
    trainer = SFTTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(adapter),
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(
            folder,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=len(rows) // 2,
            max_steps=1,
            learning_rate=0.0,
            max_length=4096,
            completion_only_loss=True,
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataset_num_proc=1,
        ),
    )
    trainer.train()
    print("LOSS", next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
