"""Held-out questions answered before training, at validations, and after: what a loss does not show.

A run's samples.json is a list of these; `during` keeps the training steps apart.

    {"question": ..., "reasoning": ..., "answer": ...,              as expected
     "before": TEXT, "during": {"100": TEXT, "200": TEXT}, "after": TEXT,
     "cut": {"before": true, "100": false, ...}}                    whether trainer.max_answer_tokens ended it
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from medreason.config import Source, TrainConfig, steps_of
from medreason.core.progress import first_process
from medreason.core.progress_line import AnswersLine
from medreason.core.run_directory import write_json
from medreason.data.clinical_cases import answers_match
from medreason.inference.batched import Written, generate_answers, well_formed
from medreason.models.prompts import Example, parse_answer

Sample = dict[str, Any]


class SampleAnswers(Callback):
    """Answers the samples at every validation for which `trainer.answer_share` leaves time.

    Logs `val/format` (share that shows reasoning, then answers), `val/tokens` (mean length), where answers can be
    checked `val/accuracy` (exact match), and `val/time_share` (of the time since training began).
    """

    def __init__(
        self, config: TrainConfig, tokenizer: Any, examples: Sequence[Example], path: Path, total_steps: int, *,
        resumed: bool,
    ) -> None:  # fmt: skip
        self.every_steps = steps_of(config.trainer.validate_every_steps, total_steps)
        self.config, self.tokenizer, self.path = config, tokenizer, path
        self.samples: list[Sample] = earlier_samples(path, examples) if resumed else [asdict(one) for one in examples]
        self.known: dict[int, list[Written]] = {}  # what was written at validations of this process, by step
        self.began: float | None = None
        self.spent = self.last = 0.0  # seconds

    def on_train_start(self, *_: Any) -> None:
        self.began = time.monotonic()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.began is None or trainer.state.fn != TrainerFn.FITTING or not self.samples:
            return
        if trainer.global_step % self.every_steps:
            return  # the run's last step: they are asked when it is over
        elapsed = time.monotonic() - self.began
        allowed = self.spent + self.last <= self.config.trainer.answer_share * (elapsed + self.last)
        if not trainer.strategy.broadcast(allowed):
            return
        step = trainer.global_step
        written = self.answer(pl_module.model, f"at step {step:,}")
        for sample, each in zip(self.samples, written, strict=True):
            sample.setdefault("during", {})[str(step)] = each.text
            sample.setdefault("cut", {})[str(step)] = each.cut
        self.known[step] = written
        self.spent += self.last
        self.save()
        for name, value in self.scores(written).items():
            pl_module.log(f"val/{name}", value)
        pl_module.log("val/time_share", self.time_share)

    def ask(self, model: Any, when: str, step: int = 0) -> dict[str, float]:
        """Answers the samples `before` or `after` training, with the weights of an optimizer step; their scores."""
        if not self.samples:
            return {}
        # what the same weights wrote at a validation is not written again
        written = self.known.get(step) or self.answer(model, f"{when} training")
        for sample, each in zip(self.samples, written, strict=True):
            sample[when] = each.text
            sample.setdefault("cut", {})[when] = each.cut
        self.save()
        return self.scores(written)

    def answer(self, model: Any, when: str) -> list[Written]:
        """What the model writes now. Several processes share the questions."""
        started = time.monotonic()
        rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        questions = [sample["question"] for sample in self.samples[rank::processes]]
        longest = self.config.trainer.max_answer_tokens
        shared = f" (its share of {len(self.samples):,})" if processes > 1 else ""
        line = AnswersLine(f"answers {when}{shared}", len(questions), len(questions) * longest)
        own = generate_answers(
            model,
            self.tokenizer,
            questions,
            self.config.data.format,
            max_new_tokens=longest,
            batch_size=self.config.trainer.answer_batch,
            line=line,
        )
        line.end(stands=self.began is None or when == "after training")
        answers = own
        if processes > 1:
            shares: list[list[Written]] = [[]] * processes
            dist.all_gather_object(shares, own)
            answers = [shares[index % processes][index // processes] for index in range(len(self.samples))]
        self.last = time.monotonic() - started
        return answers

    def scores(self, written: Sequence[Written]) -> dict[str, float]:
        """format, tokens and, where answers can be checked, accuracy."""
        style = self.config.data.format
        tokens = [len(self.tokenizer(each.text, add_special_tokens=False).input_ids) for each in written]
        found = {
            "format": sum(well_formed(each, style) for each in written) / len(written),
            "tokens": sum(tokens) / len(written),
        }
        if self.config.data.source is Source.clinical_cases:
            matched = [
                answers_match(parse_answer(each.text, style).answer, sample["answer"])
                for each, sample in zip(written, self.samples, strict=True)
            ]
            found["accuracy"] = sum(matched) / len(matched)
        return found

    @property
    def time_share(self) -> float:
        """Of the time since training began, what answering took at validations."""
        return self.spent / (time.monotonic() - self.began) if self.began is not None else 0.0

    def save(self) -> None:
        if first_process():
            write_json(self.path, self.samples)


def earlier_samples(path: Path, examples: Sequence[Example]) -> list[Sample]:
    """The samples of these examples with what a run wrote before it was interrupted, as far as that can be read."""
    try:
        known = {sample["question"]: sample for sample in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError):
        known = {}
    return [known.get(example.question, {}) | asdict(example) for example in examples]
