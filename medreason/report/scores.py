"""What a set of answered questions says, with its uncertainty; pure functions over records.

A record is a question's line in RUN/evaluation/NAME/BENCHMARK.jsonl:

    id, subject, gold      the question's; gold is null where no answer is the right one (held_out)
    prompt, text           what the model was asked, and what it wrote (empty with method=likelihood)
    choice                 the letter, or the text, that it committed to; null is no answer, which counts as wrong
    choices                of every order of the options and every sample; `choice` is the most frequent
    huatuo                 the letter by the rule of HuatuoGPT-o1's scorer, which always finds one (method=generate)
    probabilities          of each letter (method=likelihood)
    confidence             share of the samples that made this choice (samples > 1); `texts` holds them all, `cuts`
                           which of them the length limit ended
    loss, tokens           of the expected answer: cross entropy in nats, summed over so many tokens (held_out)
    formed                 whether it showed its reasoning and then answered (method=generate)
    too_long               true where a question was not asked, being longer than the model reads; counts as no answer
    cut                    whether the length limit ended it, or one of its samples
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from medreason.report.statistics import (
    accuracy_at_coverage,
    bootstrap_mean,
    brier,
    cohens_kappa,
    expected_calibration_error,
    in_words,
    mcnemar,
    paired_difference,
    wilson,
)

Record = Mapping[str, Any]
SEED = 3407  # of the bootstrap
COVERAGES = (1.0, 0.8, 0.6, 0.4, 0.2)  # shares of the questions, the surest answers first


def right(records: Sequence[Record], rule: str = "choice") -> list[bool]:
    """Which questions were answered correctly; no answer is wrong."""
    return [record.get(rule) == record["gold"] for record in records]


def summarize(records: Sequence[Record], seen: AbstractSet[str] = frozenset()) -> dict[str, Any]:
    """What these records say, each with its 95% interval; where some were `seen` in training (ids), also without them.

    Accuracy (also by subject), what was not answered or cut, loss, format, agreement, calibration, letters: those that
    apply.
    """
    found: dict[str, Any] = {"questions": len(records), "cut": sum(bool(record["cut"]) for record in records)}
    if long := sum(bool(record.get("too_long")) for record in records):
        found["too_long"] = long
    graded = [record for record in records if record["gold"] is not None]
    asked = [record for record in graded if not record.get("too_long")]
    if graded:
        found |= accuracy(right(graded))
        found["no_answer"] = sum(record["choice"] is None for record in graded)
        found["subjects"] = {
            subject: accuracy(right([record for record in graded if record["subject"] == subject]))
            for subject in sorted({record["subject"] for record in graded})
        }
        if seen:
            found["unseen"] = accuracy(right([record for record in graded if record["id"] not in seen]))
        if any(record.get("huatuo") for record in graded):
            found["huatuo"] = accuracy(right(graded, "huatuo"))
    if asked:
        if all("probabilities" in record or "confidence" in record for record in asked):
            found["calibration"] = calibration(asked)
        if any(len(record["choices"]) > 1 for record in asked):
            found["agreement"] = accuracy([len(set(record["choices"])) == 1 for record in asked])
        if all("probabilities" in record or "huatuo" in record for record in asked):
            found["letters"] = letters(graded)
    if scored := [record for record in records if "loss" in record]:
        found["loss"] = loss([record["loss"] for record in scored], [record["tokens"] for record in scored])
    if written := [record for record in records if "formed" in record]:
        found["format"] = accuracy([record["formed"] for record in written])
    return found


def loss(sums: Sequence[float], tokens: Sequence[int]) -> dict[str, Any]:
    """Mean over all tokens, in nats, with its interval over documents (bootstrap), and as perplexity."""
    mean = math.fsum(sums) / sum(tokens)
    per_document = sum(tokens) / len(tokens)
    # a ratio of two sums, made linear: its mean is the ratio, its spread that of the ratio to first order
    _, low, high = bootstrap_mean(
        [mean + (total - mean * count) / per_document for total, count in zip(sums, tokens, strict=True)], SEED
    )
    found = {"mean": mean, "interval": [low, high], "tokens": sum(tokens)}
    return found | {"perplexity": math.exp(mean), "perplexity_interval": [math.exp(low), math.exp(high)]}


def accuracy(correct: Sequence[bool]) -> dict[str, Any]:
    """Share of right answers and its 95% Wilson interval."""
    low, high = wilson(sum(correct), len(correct))
    share = sum(correct) / len(correct) if correct else None
    return {"questions": len(correct), "correct": sum(correct), "accuracy": share, "interval": [low, high]}


def letters(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """How often each letter was chosen and is the right one: shows a habit, and what it alone would score."""
    chosen, gold = (Counter(record[key] for record in records) for key in ("choice", "gold"))
    return {letter: {"chosen": chosen[letter], "gold": gold[letter]} for letter in sorted({*chosen, *gold} - {None})}


Judged = Mapping[str, Any]  # an answer's verdicts (medreason/evaluate/judging.py)


def summarize_judged(answers: Sequence[Judged], rule: Mapping[str, bool] | None = None) -> dict[str, Any]:
    """What a judge's verdicts say, and how far they can be believed; `rule`: by id what exact match says.

    The mean score has a 95% interval: Wilson's where answers are right or wrong, else a bootstrap. Where a reply could
    not be read there is no verdict: it counts neither for nor against an answer, and is told.
    """
    scores = [score for one in answers if (score := judged_score(one)) is not None]
    verdicts = [pair for one in answers for pair in one["verdicts"]]
    pairs = [(first, second) for first, second in verdicts if first is not None and second is not None]
    found: dict[str, Any] = {"questions": len(answers), "scored": len(scores)} | mean_score(scores)
    found |= {
        "no_answer": sum(one["no_answer"] for one in answers),
        "verdicts": len(verdicts),
        "no_verdict": sum(first is None for first, _ in verdicts),
        "self_agreement": agreement(pairs),
    }
    if rule is not None:
        ruled = [(one["verdicts"][0][0], rule[one["id"]]) for one in answers if one["verdicts"] and one["id"] in rule]
        found["exact_match"] = agreement([(verdict, right) for verdict, right in ruled if verdict is not None])
    if len(subjects := sorted({one["subject"] for one in answers})) > 1:
        found["subjects"] = {
            subject: mean_score([s for one in answers if one["subject"] == subject
                                 and (s := judged_score(one)) is not None])
            for subject in subjects
        }  # fmt: skip
    if tags := sorted({tag for one in answers for each in one["tags"] for tag in each}):
        found["tags"] = {
            tag: mean_score([s for one in answers if (s := judged_score(one, tag)) is not None]) for tag in tags
        }
    return found


def judged_score(answer: Judged, tag: str | None = None) -> float | None:
    """1 or 0 of a reference answer; of rubrics, points met over points above 0, below 0 where faults weigh more.

    Of a `tag` its criteria alone. No answer is 0. Criteria without a verdict are left out; None where nothing is left.
    """
    if not answer["points"]:
        if answer["no_answer"]:
            return 0.0
        ((verdict, _),) = answer["verdicts"]
        return None if verdict is None else float(verdict)
    verdicts = [first for first, _ in answer["verdicts"]] or [False] * len(answer["points"])
    counted = [
        (points, verdict)
        for points, verdict, tags in zip(answer["points"], verdicts, answer["tags"], strict=True)
        if verdict is not None and (tag is None or tag in tags)
    ]
    most = math.fsum(points for points, _ in counted if points > 0)
    return math.fsum(points for points, met in counted if met) / most if most else None


def mean_score(scores: Sequence[float]) -> dict[str, Any]:
    """The mean of judged scores, clipped to [0, 1], with its 95% interval; None without any."""
    if all(score in (0, 1) for score in scores):
        found = accuracy([score == 1 for score in scores])
        return {"mean": found["accuracy"], "interval": found["interval"]}
    mean, low, high = (min(max(end, 0.0), 1.0) for end in bootstrap_mean(scores, SEED))
    return {"mean": mean, "interval": [low, high]}


def agreement(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    """How often two verdicts are the same, as a share and beyond chance."""
    found = accuracy([first == second for first, second in pairs])
    kappa = cohens_kappa([first for first, _ in pairs], [second for _, second in pairs])
    return {"verdicts": len(pairs), "share": found["accuracy"], "interval": found["interval"], "kappa": kappa}


def compare_judged(answers: Sequence[Judged], others: Sequence[Judged]) -> dict[str, Any] | None:
    """The mean difference to another's answers by the same judge, on the questions of which both have a score."""
    theirs = {one["id"]: judged_score(one) for one in others}
    pairs = [
        (score, other)
        for one in answers
        if (score := judged_score(one)) is not None and (other := theirs.get(one["id"])) is not None
    ]
    if not pairs:
        return None
    if all(score in (0, 1) for pair in pairs for score in pair):
        right_here, right_there = [score == 1 for score, _ in pairs], [score == 1 for _, score in pairs]
        difference, low, high = paired_difference(right_here, right_there)
        words = f"by the judge {in_words(right_here, right_there)}"
    else:
        each = [score - other for score, other in pairs]
        difference, low, high = bootstrap_mean(each, SEED)
        if len(set(each)) == 1:  # which a bootstrap would be sure of
            low, high = -1.0, 1.0
        told = f"95% interval {100 * low:+.1f} to {100 * high:+.1f}; {len(each):,} questions"
        words = f"no significant difference by the judge ({100 * difference:+.1f} points, {told})"
        if low > 0 or high < 0:
            more = "higher" if difference > 0 else "lower"
            words = f"its judged score is {more}: {100 * difference:+.1f} points ({told})"
    return {"questions": len(pairs), "difference": difference, "interval": [low, high], "in_words": words}


def calibration(records: Sequence[Record]) -> dict[str, Any]:
    """How far confidence can be believed: ECE, accuracy of the surest answers; with probabilities the Brier score."""
    likely = all("probabilities" in record for record in records)
    confidence = [max(record["probabilities"].values()) if likely else record["confidence"] for record in records]
    correct = right(records)
    surest = accuracy_at_coverage(confidence, correct, COVERAGES)
    found: dict[str, Any] = {
        "ece": expected_calibration_error(confidence, correct),
        "accuracy_at_coverage": dict(zip(map(str, COVERAGES), surest, strict=True)),
    }
    if likely:
        golds = [list(record["probabilities"]).index(record["gold"]) for record in records]
        found["brier"] = brier([list(record["probabilities"].values()) for record in records], golds)
    return found


def compare(records: Sequence[Record], others: Sequence[Record]) -> dict[str, Any] | None:
    """The difference to another's answers on the questions that both answered, paired; None where there is none."""
    theirs = {record["id"]: record for record in others}
    pairs = [(record, theirs[record["id"]]) for record in records if record["id"] in theirs]
    losses = [(ours, other) for ours, other in pairs if ours.get("tokens") and ours["tokens"] == other.get("tokens")]
    if losses:
        return compare_losses([one["loss"] for one, _ in losses], [other["loss"] for _, other in losses],
                              sum(one["tokens"] for one, _ in losses))  # fmt: skip
    graded = [(ours, other) for ours, other in pairs if ours["gold"] is not None and other["gold"] is not None]
    if not graded:
        return None
    ours, other = right([one for one, _ in graded]), right([one for _, one in graded])
    difference, low, high = paired_difference(ours, other)
    return {
        "questions": len(graded),
        "difference": difference,
        "interval": [low, high],
        "p": mcnemar(ours, other),
        "in_words": in_words(ours, other),
    }


def compare_losses(sums: Sequence[float], others: Sequence[float], tokens: int) -> dict[str, Any]:
    """The difference of two models' losses on the same documents, in nats a token."""
    scale = len(sums) / tokens
    difference, low, high = bootstrap_mean(
        [(ours - other) * scale for ours, other in zip(sums, others, strict=True)], SEED
    )
    told = f"95% interval {low:+.3f} to {high:+.3f}; {len(sums):,} rows"
    if low <= 0 <= high:
        words = f"no significant difference ({difference:+.3f} nats a token, {told})"
    else:
        words = f"its loss is {'lower' if difference < 0 else 'higher'}: {difference:+.3f} nats a token ({told})"
    return {"questions": len(sums), "difference": difference, "interval": [low, high], "in_words": words}
