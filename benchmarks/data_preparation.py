"""Seconds and memory to turn rows into packed training rows, here and in TRL.

usage: data_preparation.py ours|trl|grow MODEL_DIR ROWS_JSONL [COUNT]

MODEL_DIR needs a tokenizer and a config.json alone. `grow` writes COUNT rows to stdout: those of ROWS_JSONL over and
over, one word in twelve replaced by another of the text, so that no text repeats. Each of the others is one process:
run `ours` twice for the cache, with MEDREASON_CACHE on an empty folder for the first.
"""

import os
import resource
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def grow(rows: str, count: int) -> None:
    import json
    import random
    from pathlib import Path

    from medreason.core.json_lines import read_json_lines

    rng = random.Random(0)
    originals = read_json_lines(Path(rows))

    def varied(text: str) -> str:
        words = text.split(" ")
        for _ in range(max(1, len(words) // 12)):
            words[rng.randrange(len(words))] = rng.choice(words)
        return " ".join(words)

    for number in range(count):
        row = {key: varied(text) for key, text in originals[number % len(originals)].items()}
        print(json.dumps(row | {"Question": f"{row['Question']} {number}"}, ensure_ascii=False))


def ours(model: str, rows: str, row_tokens: int) -> None:
    from medreason.core.cli import composed
    from medreason.data.corpus import read_split
    from medreason.data.datamodule import MedicalReasoningData
    from medreason.models.load import load_tokenizer

    config = composed(f"model.path={model}", "data=local", f"data.path={rows}", f"data.row_tokens={row_tokens}",
                      "data.too_long=truncate")  # fmt: skip
    tokenizer = load_tokenizer(config.model)
    imports = peak_gb()
    began = time.perf_counter()
    split = read_split(config.data)
    read = time.perf_counter() - began
    data = MedicalReasoningData(config.data, split, tokenizer)
    data.setup()
    seconds = time.perf_counter() - began
    report = data.report()
    print(
        f"ours: {seconds:.2f} s (rows {read:.2f}, tokens and packing {seconds - read:.2f}), "
        f"peak {peak_gb():.2f} GB of which imports {imports:.2f}, "
        f"{report['train_rows']:,} rows of {row_tokens:,}, {report['fill']:.2%} full"
    )


def trl(model: str, rows: str, row_tokens: int) -> None:
    import tempfile

    from datasets import Dataset
    from transformers import AutoConfig, AutoTokenizer, MistralForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.unk_token
    small = AutoConfig.for_model("mistral", hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                 num_attention_heads=1, num_key_value_heads=1, vocab_size=len(tokenizer))  # fmt: skip
    network = MistralForCausalLM(small)
    imports = peak_gb()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = folder
        began = time.perf_counter()
        table = Dataset.from_json(rows, cache_dir=folder)
        pairs = table.map(
            lambda row: {
                "prompt": f"<s>[INST] {row['Question']}[/INST]",
                "completion": f"<think>\n{row['Complex_CoT']}\n</think>\n\n{row['Response']}",
            },
            remove_columns=table.column_names,
        )
        config = SFTConfig(folder, packing=True, packing_strategy="bfd", max_length=row_tokens, report_to="none",
                           use_cpu=True, bf16=False, dataset_num_proc=2)  # fmt: skip
        trainer = SFTTrainer(model=network, processing_class=tokenizer, train_dataset=pairs, args=config)
        seconds = time.perf_counter() - began
        packed = trainer.train_dataset
        tokens = sum(map(len, packed["input_ids"]))
        print(
            f"TRL: {seconds:.2f} s, peak {peak_gb():.2f} GB of which imports {imports:.2f}, "
            f"{len(packed):,} rows of {row_tokens:,}, {tokens / (len(packed) * row_tokens):.2%} full"
        )


if __name__ == "__main__":
    if sys.argv[1] == "grow":
        grow(sys.argv[3], int(sys.argv[4]))
    else:
        size = int(sys.argv[4]) if len(sys.argv) > 4 else 8192
        {"ours": ours, "trl": trl}[sys.argv[1]](sys.argv[2], sys.argv[3], size)
