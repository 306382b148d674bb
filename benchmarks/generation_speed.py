"""Tokens per second of written answers: plain `generate` in batches, and continuous batching.

usage: generation_speed.py static|continuous MODEL QUESTIONS_FILE [QUESTIONS] [NEW_TOKENS] [BATCH]
       MODEL is a folder; one of Mistral-7B's shape with random weights is exact for speed. QUESTIONS_FILE holds
       multiple-choice questions as medreason.evaluate reads them.

Every answer is NEW_TOKENS long, which flatters static batches: real ones also wait for their longest answer. Both take
the weights in 16 bits, as medreason.evaluate does on a GPU. Each call is one process; compare calls on one machine.
"""

import sys
import time

import torch

from medreason.core.cli import composed
from medreason.data.benchmarks import reasoning_prompt
from medreason.data.known_benchmarks import read_task
from medreason.inference import continuous
from medreason.inference.batched import write_in_batches
from medreason.models.load import load_tokenizer
from medreason.models.prompts import prompt_text


def main(mode: str, path: str, file: str, questions: str = "1273", new_tokens: str = "256", batch: str = "16") -> None:
    config = composed(f"model.path={path}", "model.precision=half", "data=clinical_cases")
    tokenizer = load_tokenizer(config.model)
    tokenizer.eos_token = tokenizer.pad_token  # which no model writes: answers do not end
    asked = read_task(file).questions[: int(questions)]
    prompts = [prompt_text(tokenizer, reasoning_prompt(question), config.data.format) for question in asked]
    model = continuous.load_merged(config, None)
    began = time.perf_counter()
    if mode == "static":
        found = write_in_batches(model, tokenizer, prompts, max_new_tokens=int(new_tokens), batch_size=int(batch))
    else:
        found = continuous.write_continuously(model, tokenizer, prompts, max_new_tokens=int(new_tokens))
    count = sum(1 for _ in found)
    seconds = time.perf_counter() - began
    memory = f", {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB" if torch.cuda.is_available() else ""
    print(
        f"RESULT {mode}: {count} answers of {new_tokens} tokens in {seconds:.1f} s: {count / seconds:.2f} questions/s, "
        f"{count * int(new_tokens) / seconds:.0f} tokens/s{memory}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
