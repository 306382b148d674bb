"""Questions -> what the model writes, in batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from medreason.config import Format
from medreason.prompts import prompt_text


def generate_answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[str],
    style: Format,
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """The greedy completion of each question's prompt, special tokens removed; same order as `questions`.

    The model is left in training mode, as it was found. Questions of like length share a batch, so little is padded.
    """
    prompts = [prompt_text(tokenizer, question, style) for question in questions]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers = [""] * len(prompts)
    model.for_inference()
    try:
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            inputs = tokenizer(
                [prompts[member] for member in members],
                add_special_tokens=False,
                padding=True,
                padding_side="left",
                return_tensors="pt",
            ).to(model.device)
            with torch.inference_mode():
                written = model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    use_cache=True,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                )
            completions = written[:, inputs["input_ids"].shape[1] :]
            for member, text in zip(
                members, tokenizer.batch_decode(completions, skip_special_tokens=True), strict=True
            ):
                answers[member] = text.strip()
            progress(min(start + batch_size, len(order)), len(order))
    finally:
        model.for_training()
    return answers
