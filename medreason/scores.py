"""What a set of answered questions says, with its uncertainty; pure functions over records.

A record is a question's line in RUN/evaluation/NAME/BENCHMARK.jsonl:

    id, subject, gold      the question's
    prompt, text           what the model was asked, and what it wrote (empty with method=likelihood)
    choice                 the letter that it committed to; null is no answer, which counts as wrong
    huatuo                 the letter by the rule of HuatuoGPT-o1's scorer, which always finds one (method=generate)
    probabilities          of each letter (method=likelihood)
    cut                    whether the length limit ended it
"""

from collections.abc import Mapping, Sequence
from typing import Any

from medreason.statistics import (
    accuracy_at_coverage,
    brier,
    expected_calibration_error,
    in_words,
    mcnemar,
    paired_difference,
    wilson,
)

Record = Mapping[str, Any]
COVERAGES = (1.0, 0.8, 0.6, 0.4, 0.2)  # shares of the questions, the surest answers first


def right(records: Sequence[Record], rule: str = "choice") -> list[bool]:
    """Which questions were answered correctly; no answer is wrong."""
    return [record[rule] == record["gold"] for record in records]


def summarize(records: Sequence[Record]) -> dict[str, Any]:
    """Accuracy with its 95% interval, what was not answered or cut, by subject; calibration where there are shares."""
    found: dict[str, Any] = {
        **accuracy(right(records)),
        "no_answer": sum(record["choice"] is None for record in records),
        "cut": sum(bool(record["cut"]) for record in records),
        "subjects": {
            subject: accuracy(right([record for record in records if record["subject"] == subject]))
            for subject in sorted({record["subject"] for record in records})
        },
    }
    if records and records[0].get("huatuo") is not None:
        found["huatuo"] = accuracy(right(records, "huatuo"))
    if records and records[0].get("probabilities"):
        found["calibration"] = calibration(records)
    return found


def accuracy(correct: Sequence[bool]) -> dict[str, Any]:
    """Share of right answers and its 95% Wilson interval."""
    low, high = wilson(sum(correct), len(correct))
    share = sum(correct) / len(correct) if correct else None
    return {"questions": len(correct), "correct": sum(correct), "accuracy": share, "interval": [low, high]}


def calibration(records: Sequence[Record]) -> dict[str, Any]:
    """How far probabilities can be believed: ECE, Brier score, accuracy of the surest answers."""
    confidence = [max(record["probabilities"].values()) for record in records]
    correct = right(records)
    golds = [list(record["probabilities"]).index(record["gold"]) for record in records]
    return {
        "ece": expected_calibration_error(confidence, correct),
        "brier": brier([list(record["probabilities"].values()) for record in records], golds),
        "accuracy_at_coverage": dict(
            zip(map(str, COVERAGES), accuracy_at_coverage(confidence, correct, COVERAGES), strict=True)
        ),
    }


def compare(records: Sequence[Record], others: Sequence[Record]) -> dict[str, Any] | None:
    """The difference to another's answers on the questions that both answered, paired; None where there is none."""
    theirs = {record["id"]: record for record in others}
    pairs = [(record, theirs[record["id"]]) for record in records if record["id"] in theirs]
    if not pairs:
        return None
    ours, other = right([one for one, _ in pairs]), right([one for _, one in pairs])
    difference, low, high = paired_difference(ours, other)
    return {
        "questions": len(pairs),
        "difference": difference,
        "interval": [low, high],
        "p": mcnemar(ours, other),
        "in_words": in_words(ours, other),
    }
