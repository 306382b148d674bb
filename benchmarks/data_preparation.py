"""Seconds and memory to turn rows into packed training rows, here and in TRL.

usage: data_preparation.py ours|trl MODEL_DIR ROWS_JSONL [ROW_TOKENS]
       data_preparation.py grow MODEL_DIR ROWS_JSONL COUNT [ONE_IN]

MODEL_DIR needs a tokenizer and a config.json alone; embedded:smollm2_135m will do. `grow` writes COUNT rows to stdout:
those of ROWS_JSONL over and over, one word in twelve replaced by another of the text, so that no text repeats. Many of
them are near one another, and of a row that comes a thousand times half a million pairs are compared; with one in two
replaced none is. Each of the others is one process: run `ours` twice for the cache, with MEDREASON_CACHE on an empty
folder for the first.

Anonymous memory is what a process must have. The rest of the peak is libraries and mapped files, which the system drops
when it needs the room.
"""

import os
import resource
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def anonymous_gb() -> float:
    """Memory of this process that no file lies behind, as Linux says it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e6


class Watch(threading.Thread):
    """Takes down the most anonymous memory, a hundred times a second, until it is asked."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.began = self.peak = anonymous_gb()
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.01):
            self.peak = max(self.peak, anonymous_gb())

    def beyond(self) -> float:
        """GB more than at the beginning, at most."""
        self.ended.set()
        self.join()
        return self.peak - self.began


def grow(rows: str, count: int, one_in: int) -> None:
    import json
    import random

    from medreason.core.json_lines import read_json_lines

    rng = random.Random(0)
    originals = read_json_lines(Path(rows))

    def varied(text: str) -> str:
        words = text.split(" ")
        for _ in range(max(1, len(words) // one_in)):
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
    imports, watch = peak_gb(), Watch()
    began = time.perf_counter()
    split = read_split(config.data)
    read = time.perf_counter() - began
    data = MedicalReasoningData(config.data, split, tokenizer)
    data.setup()
    seconds = time.perf_counter() - began
    report = data.report()
    print(
        f"ours: {seconds:.2f} s (rows {read:.2f}, tokens and packing {seconds - read:.2f}), "
        f"peak {peak_gb():.2f} GB of which imports {imports:.2f}, anonymous beyond the imports {watch.beyond():.2f}, "
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
        grow(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]) if len(sys.argv) > 5 else 12)
    else:
        size = int(sys.argv[4]) if len(sys.argv) > 4 else 8192
        {"ours": ours, "trl": trl}[sys.argv[1]](sys.argv[2], sys.argv[3], size)
