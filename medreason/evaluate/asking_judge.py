"""A judge model behind an OpenAI-compatible address reads the answers of an evaluation; every verdict is kept.

RUN/evaluation/NAME/  judge.json              its model, address, prompts and their digest
                      BENCHMARK_judge.jsonl   a line a reply, as it came; judging that was interrupted goes on
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medreason.config import ConfigError, EvaluateConfig, Format
from medreason.core.json_lines import append_json_lines, mend_last_line, read_json_lines
from medreason.core.progress import quieten
from medreason.core.progress_line import AnswersLine
from medreason.core.run_directory import read_json, write_json
from medreason.core.storage import hidden
from medreason.data.benchmarks import Kind, Task
from medreason.evaluate.judging import (
    ATTEMPTS,
    REMINDER,
    Item,
    items,
    judged,
    key,
    parse_verdict,
    prompt_digest,
    prompt_texts,
    verdicts_of,
)
from medreason.models.checks import check_installed, check_server
from medreason.models.prompts import parse_answer

AT_ONCE = 32  # items


@dataclass(frozen=True)
class Judge:
    address: str
    model: str
    tokens: int  # that a reply may have

    def identity(self) -> dict[str, Any]:
        """What verdicts depend on, wherever the judge is at work."""
        return {"model": self.model, "max_new_tokens": self.tokens, "temperature": 0, "digest": prompt_digest()}


def find_judge(config: EvaluateConfig) -> Judge | None:
    """The judge that is asked for. Raises ConfigError where none answers, or where it is not clear which model."""
    if config.judge is None:
        return None
    check_installed("serve", "openai")
    there = check_server(config.judge, "judge")
    if config.judge_model is None and len(there) != 1:
        names = ", ".join(map(repr, there[:8])) + (", ..." if len(there) > 8 else "") if there else "not listed"
        raise ConfigError(f"judge_model must be given: the models at judge={hidden(config.judge)} are {names}")
    return Judge(config.judge, config.judge_model or there[0], config.judge_tokens)


def to_judge(tasks: Sequence[Task]) -> list[Task]:
    """Those whose answers a judge reads: open ones, and exact ones to see how far it can be believed."""
    return [task for task in tasks if task.kind is not Kind.choice]


def check_judging(judge: Judge, tasks: Sequence[Task], folder: Path) -> None:
    """Raises ConfigError where there is nothing to judge, or where verdicts of another judge lie."""
    if not to_judge(tasks):
        raise ConfigError(
            "judge: the benchmarks have letters, which need none; name clinical_cases, held_out, or a file of open "
            "questions"
        )
    names = {task.name for task in tasks}
    if clash := [name for name in names if f"{name}_judge" in names]:
        raise ConfigError(f"benchmarks: {clash[0]}_judge is where the verdicts on {clash[0]} go; rename its file")
    earlier, now = read_json(folder / "judge.json"), judge.identity()
    if different := [name for name in now if earlier and earlier.get(name) != now[name]]:
        name = different[0]
        said = "made with another prompt" if name == "digest" else f"with {name}={earlier.get(name)}, not {now[name]}"
        raise ConfigError(
            f"{folder} holds verdicts {said}; remove its judge.json and *_judge.jsonl, or give another output=DIR"
        )


def ask_judge(
    judge: Judge, tasks: Sequence[Task], records: dict[str, list[dict[str, Any]]], style: Format, folder: Path,
    at_once: int | None,
) -> None:  # fmt: skip
    """Asks for the verdicts that are not there; each is in its file before the next one. Raises RunFailed."""
    write_json(
        folder / "judge.json",
        judge.identity() | {"address": without_credentials(judge.address), "prompts": prompt_texts()},
    )
    quieten()
    for task in to_judge(tasks):
        path = folder / f"{task.name}_judge.jsonl"
        mend_last_line(path)
        asked = [
            item for question, answer in answered(task, records[task.name], style) for item in items(question, answer)
        ]
        for attempt in ATTEMPTS:
            found = verdicts_of(read_json_lines(path))
            left = [item for item in asked if to_ask(found.get(key(item)), attempt)]
            if left:
                ask(judge, left, attempt, path, f"{task.name}, {'judged' if attempt == 1 else 'judged again'}", at_once)


def to_ask(found: tuple[bool | None, int] | None, attempt: int) -> bool:
    """Whether an item is asked about in this attempt: the second follows a reply that could not be read."""
    return found is None if attempt == 1 else found is not None and found[0] is None and found[1] < attempt


def ask(judge: Judge, left: Sequence[Item], attempt: int, path: Path, what: str, at_once: int | None) -> None:
    from medreason.inference.server import write_remotely

    prompts = [item.prompt + (REMINDER if attempt > 1 else "") for item in left]
    line = AnswersLine(what, len(left), unit="verdicts")
    replies = write_remotely(
        judge.address, judge.model, prompts, Format.think, max_new_tokens=judge.tokens, at_once=at_once or AT_ONCE,
        setting="judge",
    )  # fmt: skip
    for done, (place, written) in enumerate(replies, 1):
        item = left[place]
        record = {
            "question": item.question,  # no "id": this is no answer
            "criterion": item.criterion,
            "form": item.form,
            "about": item.about,
            "attempt": ATTEMPTS[-1] if written.too_long else attempt,  # it would be no shorter
            "verdict": None if written.cut else parse_verdict(written.text),
            "reply": written.text,
            "cut": written.cut,
            "too_long": written.too_long,
        }
        append_json_lines(path, [record])
        line.tell(answered=done)
    line.end(stands=True)


def answered(task: Task, records: Sequence[dict[str, Any]], style: Format) -> list[tuple[Any, str]]:
    """Questions of a task with the answers to them, without the reasoning."""
    texts = {record["id"]: parse_answer(record["text"], style).answer for record in records}
    return [(question, texts[question.id]) for question in task.questions if question.id in texts]


def read_judged(task: Task, records: Sequence[dict[str, Any]], style: Format, folder: Path) -> list[dict[str, Any]]:
    """The verdicts on answers, of those that have been asked for whole."""
    found = verdicts_of(read_json_lines(folder / f"{task.name}_judge.jsonl"))
    each = [judged(question, answer, found) for question, answer in answered(task, records, style)]
    return [one for one in each if one is not None] if found else []


def same_judge(folder: Path, other: Path) -> bool:
    """Whether one judge with one prompt read the answers of both evaluations."""
    one, another = (read_json(place / "judge.json") for place in (folder, other))
    return bool(one) and all(one.get(name) == another.get(name) for name in ("model", "max_new_tokens", "digest"))


def without_credentials(address: str) -> str:
    """An address without the name, password and query that a URL may hold."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
