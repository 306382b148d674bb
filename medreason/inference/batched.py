"""Prompts -> what a model writes, in batches that end together; inference/continuous.py has those that do not."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medreason.config import Format, Precision
from medreason.core.progress_line import AnswersLine
from medreason.models.control_tokens import encode
from medreason.models.prompts import asked_text, parse_answer


@dataclass(frozen=True)
class Written:
    """What a model wrote to a prompt, special tokens removed, and whether the length limit ended it."""

    text: str
    cut: bool
    too_long: bool = False  # a server refused the prompt: it is longer than the model reads
    tokens: int = field(default=0, compare=False)  # of the text, without the end-of-sequence token; 0: not known


def written_text(tokenizer: Any, tokens: Sequence[int]) -> Written:
    """The text before the end-of-sequence token; cut where there is none."""
    kept = list(itertools.takewhile(lambda token: token != tokenizer.eos_token_id, tokens))
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Written(text.strip(), cut=len(kept) == len(tokens), tokens=len(kept))


def widen(model: Any, precision: Precision) -> None:
    """Gives a 16-bit model 32 bits on a CPU, where one token after the other is to be written.

    bfloat16 stalls there when other processes share the cores: 4 to 40 s where float32 took 2.
    """
    if model.device.type == "cpu" and precision is Precision.half:
        model.float()


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """The model as it answers best; afterwards in the mode in which it was found."""
    trained = model.training
    unsloth = hasattr(model, "for_inference")  # and its fast way of writing
    if unsloth:
        model.for_inference()
    model.eval()
    try:
        yield
    finally:
        if unsloth:
            model.for_training()
        model.train(trained)


def left_padded(tokenizer: Any, prompts: Sequence[str], device: Any) -> tuple[Tensor, Tensor]:
    """Prompts' tokens and the mask that leaves their padding out, each (prompts, tokens) int64."""
    rows = [encode(tokenizer, prompt) for prompt in prompts]
    width = max(map(len, rows))
    tokens = [[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def write_in_batches(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Written]]:
    """Pairs of a prompt's index and what was written to it, batch by batch, short prompts first; 0 degrees is greedy.

    `progress` is told after each token how many were written to all prompts so far.

    Prompts hold their special tokens. Those of like length share a batch, so little is padded.
    """
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    chosen: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    before = 0  # tokens of the batches that are written
    with inference(model):
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            tokens, mask = left_padded(tokenizer, [prompts[member] for member in members], model.device)
            watched = {} if progress is None else counting(tokens.shape[1], tokenizer.pad_token_id, before, progress)
            with torch.inference_mode():
                written = model.generate(
                    input_ids=tokens,
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    use_cache=True,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    **chosen,
                    **watched,
                )
            before += written_tokens(written, tokens.shape[1], tokenizer.pad_token_id)
            completions = written[:, tokens.shape[1] :].tolist()
            for member, completion in zip(members, completions, strict=True):
                yield member, written_text(tokenizer, completion)


def counting(prompt_tokens: int, padding: int, before: int, progress: Callable[[int], None]) -> dict[str, Any]:
    """What has `generate` tell after each token how many were written, `before` among them; it ends nothing."""
    from transformers import StoppingCriteriaList

    def tell(tokens: Tensor, scores: Any, **_: Any) -> Tensor:
        progress(before + written_tokens(tokens, prompt_tokens, padding))
        return torch.zeros(len(tokens), device=tokens.device, dtype=torch.bool)

    return {"stopping_criteria": StoppingCriteriaList([tell])}


def written_tokens(tokens: Tensor, prompt_tokens: int, padding: int) -> int:
    """How many tokens a batch has after its prompts, without the padding of those that ended early."""
    return int((tokens[:, prompt_tokens:] != padding).sum())


def generate_answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[str],
    style: Format,
    *,
    max_new_tokens: int,
    batch_size: int,
    line: AnswersLine | None = None,
) -> list[Written]:
    """The greedy answer to each question, in their order; `line` tells how far they are."""
    prompts = [asked_text(tokenizer, question, style) for question in questions]
    answers: dict[int, Written] = {}
    for index, written in write_in_batches(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=line.wrote if line is not None else None,
    ):
        answers[index] = written
        if line is not None:
            line.tell(answered=len(answers))
    return [answers[index] for index in range(len(prompts))]


def well_formed(written: Written, style: Format) -> bool:
    """Whether a text shows its reasoning and then answers, within the length limit."""
    parsed = parse_answer(written.text, style)
    return bool(parsed.reasoning and parsed.answer) and not written.cut
