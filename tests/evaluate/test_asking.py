import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from medreason.config import Format
from medreason.data.benchmarks import Kind, Question, cyclic_orders, likelihood_prompt, reasoning_prompt
from medreason.data.datamodule import PackedLoader
from medreason.data.tokenization import tokenize
from medreason.evaluate.asking import (
    beyond,
    by_likelihood,
    by_loss,
    by_writing,
    own_letters,
    question_text,
    question_turns,
    record,
    shares,
    tokens_needed,
    too_long,
    written_record,
)
from medreason.inference.batched import Written
from medreason.models.load import summed_loss
from medreason.models.prompts import Example, conversation_text, prompt_text
from medreason.report.scores import summarize

IRON = Question("q1", "Which metal does haemoglobin hold?", {"A": "iron", "B": "zinc", "C": "tin"}, "A", "blood", "")
CASE = Question("c1", "Stage?", {}, "Stage G4", "kidney", "")


def writer(*texts: str, cut: bool = False) -> Callable[[Sequence[str]], Iterator[tuple[int, Written]]]:
    """Writes these texts to the prompts in turn, and hands them over last first."""

    def write(prompts: Sequence[str]) -> Iterator[tuple[int, Written]]:
        written = [(place, Written(text, cut)) for place, text in zip(range(len(prompts)), texts, strict=True)]
        yield from reversed(written)

    return write


def written(tokenizer: Any, question: Question, kind: Kind, *texts: str, orders: int = 1, samples: int = 1,
            cut: bool = False) -> dict[str, Any]:  # fmt: skip
    def prompted(one: Question) -> str:
        return prompt_text(tokenizer, reasoning_prompt(one), Format.think)

    found = list(by_writing(writer(*texts, cut=cut), prompted, [question], kind, Format.think,
                            orders=orders, samples=samples))  # fmt: skip
    assert len(found) == 1
    return found[0]


def thought(answer: str) -> str:
    return f"<think>\nSo.\n</think>\n\n{answer}"


def test_cyclic_orders_put_every_option_once_in_every_place() -> None:
    assert cyclic_orders(3, 3) == [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    assert cyclic_orders(3, 9) == cyclic_orders(3, 3)
    assert cyclic_orders(4, 1) == [(0, 1, 2, 3)]
    assert cyclic_orders(0, 2) == [()]


def test_a_letter_is_read_by_the_order_in_which_it_was_asked(tokenizer: Any) -> None:
    # the same option three times, under another letter each time
    found = written(tokenizer, IRON, Kind.choice, thought("The answer is A."), thought("The answer is C."),
                    thought("The answer is B."), orders=3)  # fmt: skip
    assert found["choices"] == ["A", "A", "A"]
    assert (found["choice"], found["huatuo"], found["confidence"]) == ("A", "A", 1.0)
    assert "A. iron\nB. zinc\nC. tin" in found["prompt"]


def test_a_model_that_only_likes_a_place_is_found_out(tokenizer: Any) -> None:
    found = written(tokenizer, IRON, Kind.choice, *[thought("The answer is A.")] * 3, orders=3)
    assert found["choices"] == ["A", "B", "C"]
    assert found["confidence"] == pytest.approx(1 / 3)


def test_the_most_frequent_of_several_samples_counts_and_its_text_is_shown(tokenizer: Any) -> None:
    texts = [thought("The answer is B."), "no idea", thought("The answer is A."), thought("The answer is A.")]
    found = written(tokenizer, IRON, Kind.choice, *texts, samples=4)
    assert (found["choice"], found["choices"], found["confidence"]) == ("A", ["B", None, "A", "A"], 0.5)
    assert found["text"] == texts[2] and found["texts"] == texts and len(found["cuts"]) == len(texts)
    assert found["formed"] is False  # one of them shows no reasoning


def test_a_huatuo_letter_that_is_no_option_is_kept_as_wrong(tokenizer: Any) -> None:
    found = written(tokenizer, IRON, Kind.choice, "The answer is F.")
    assert (found["choice"], found["huatuo"]) == (None, "F")


def test_an_exact_answer_is_right_whatever_its_case_and_final_stop(tokenizer: Any) -> None:
    assert written(tokenizer, CASE, Kind.exact, thought("stage g4."))["choice"] == "Stage G4"
    assert written(tokenizer, CASE, Kind.exact, thought("Stage G3b"))["choice"] == "Stage G3b"
    assert written(tokenizer, CASE, Kind.exact, "<think>\nnever ends")["choice"] is None


def test_an_open_question_has_no_right_answer_but_a_form(tokenizer: Any) -> None:
    found = written(tokenizer, CASE, Kind.open, thought("Stage G4"))
    assert found["gold"] is None and found["formed"] is True
    assert written(tokenizer, CASE, Kind.open, thought("Stage"), cut=True)["formed"] is False
    assert written(tokenizer, CASE, Kind.open, "Stage G4")["formed"] is False


def test_turns_before_a_question_are_part_of_its_prompt_here_and_at_a_server(tokenizer: Any) -> None:
    asked = Question("q", "An hour.", {}, "Call 112.", "", "", earlier=(("My chest hurts.", "Since when?"),))
    text = question_text(tokenizer, asked, Format.think)
    assert text == conversation_text(tokenizer, [("My chest hurts.", "Since when?")], "An hour.", Format.think)
    assert text.index("My chest hurts.") < text.index("Since when?") < text.index("An hour.")
    chat = question_turns(asked)
    assert [turn["role"] for turn in chat] == ["user", "assistant", "user"]  # type: ignore[index]
    assert question_turns(replace(asked, earlier=())) == "An hour."
    (found,) = by_writing(writer("So."), question_turns, [asked], Kind.open, Format.think, orders=1, samples=1)
    assert found["prompt"] == "user: My chest hurts.\n\nassistant: Since when?\n\nuser: An hour."
    # and count where it is asked whether the model can read it all
    long = replace(asked, earlier=(("Pain. " * 400, "Since when?"),))
    some: dict[str, Any] = {"orders": 1, "max_new_tokens": 4}
    room = tokens_needed(tokenizer, asked, Kind.open, Format.think, **some)
    assert beyond(room, tokenizer, [asked, long], Kind.open, Format.think, **some) == ["q"]
    assert beyond(room - 1, tokenizer, [asked], Kind.open, Format.think, **some) == ["q"]


def test_records_come_as_questions_are_answered_whole() -> None:
    second = Question("q2", "Which one?", {"A": "x", "B": "y"}, "B", "", "")
    texts = [thought(f"The answer is {letter}.") for letter in "ABBA"]
    found = list(
        by_writing(writer(*texts), reasoning_prompt, [IRON, second], Kind.choice, Format.think, orders=1, samples=2)
    )
    assert [record["id"] for record in found] == ["q2", "q1"]  # the writer hands over the last first
    assert found[0]["choices"] == ["B", "A"] and found[1]["choices"] == ["A", "B"]


def test_probabilities_are_the_mean_over_orders_of_each_option(tokenizer: Any, make_model: Callable[..., Any]) -> None:
    model = make_model().eval()
    questions = [IRON, Question("q2", "Which one?", {"A": "x", "B": "y"}, "B", "", "")]
    alone: dict[str, list[float]] = {}
    for order in cyclic_orders(3, 3):
        texts = list(IRON.options.values())
        asked = Question("q", IRON.question, dict(zip("ABC", (texts[i] for i in order), strict=True)), "A", "", "")
        only = next(by_likelihood(model, tokenizer, [asked], Format.think, orders=1, batch_size=4))
        for letter, option in zip("ABC", order, strict=True):
            alone.setdefault("ABC"[option], []).append(only["probabilities"][letter])
    found = list(by_likelihood(model, tokenizer, questions, Format.think, orders=3, batch_size=4))
    assert [record["id"] for record in found] == ["q1", "q2"]
    assert len(found[0]["choices"]) == 3 and len(found[1]["choices"]) == 2
    for letter, values in alone.items():
        assert found[0]["probabilities"][letter] == pytest.approx(math.fsum(values) / 3, abs=1e-5)
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1)


def test_shares_go_back_to_the_letters_they_belong_to() -> None:
    assert own_letters(IRON, (1, 2, 0), [0.1, 0.2, 0.7]) == {"B": 0.1, "C": 0.2, "A": 0.7}
    assert shares([0.0, math.log(3)]) == pytest.approx([0.25, 0.75])


def test_the_loss_of_held_out_rows_is_that_of_training(
    tokenizer: Any, make_model: Callable[..., Any], cases: list[Example]
) -> None:
    model = make_model().eval()
    questions = [
        Question(str(i), one.question, {}, one.answer, "", "", one.reasoning) for i, one in enumerate(cases[:5])
    ]
    found = list(by_loss(model, tokenizer, questions, Format.think, batch_size=2))
    documents = tokenize(cases[:5], tokenizer, Format.think)
    batch = PackedLoader(documents, 4096, pad_token=tokenizer.pad_token_id).batch([0], 0)
    assert sum(record["loss"] for record in found) == pytest.approx(summed_loss(model, batch).item(), rel=1e-4)
    assert sum(record["tokens"] for record in found) == batch.targets
    assert all(record["gold"] is None for record in found)


def test_a_record_of_one_text_holds_no_samples() -> None:
    found = written_record(
        IRON, "p", [((0, 1, 2), Written(thought("The answer is A."), True))], Kind.choice, Format.think
    )
    assert "texts" not in found and "confidence" not in found and found["cut"] is True


def test_questions_longer_than_the_model_reads_are_found_and_count_as_no_answer(tokenizer: Any) -> None:
    long = Question("q2", "Which?", IRON.options, "A", "blood", "The notes say. " * 300)  # 4,500 tokens
    settings: dict[str, Any] = {"orders": 1, "max_new_tokens": None}
    needed = tokens_needed(tokenizer, long, Kind.choice, Format.think, **settings)
    prompt = prompt_text(tokenizer, likelihood_prompt(long), Format.think)
    assert needed == len(tokenizer(prompt, add_special_tokens=False).input_ids)
    for room, found in ((needed, []), (needed - 1, ["q2"])):
        assert beyond(room, tokenizer, [IRON, long], Kind.choice, Format.think, **settings) == found
    settings["max_new_tokens"] = 100
    written = tokens_needed(tokenizer, long, Kind.choice, Format.think, **settings)
    asked = prompt_text(tokenizer, reasoning_prompt(long), Format.think)
    assert written == len(tokenizer(asked, add_special_tokens=False).input_ids) + 100
    row = Question("r1", "q" * 50, {}, "a" * 50, "", "", "r" * 50)
    document = tokenize([Example(row.question, row.reasoning, row.answer)], tokenizer, Format.think)[0]
    assert tokens_needed(tokenizer, row, Kind.open, Format.think, orders=1, max_new_tokens=None) == len(document)


def test_scores_tell_how_many_questions_were_too_long() -> None:
    records = [
        {"probabilities": {"A": 0.7, "B": 0.3}, **record(IRON, "p", "A", ["A"])},
        too_long(IRON, Kind.choice),
    ]
    found = summarize(records)
    assert (found["questions"], found["correct"], found["no_answer"], found["too_long"]) == (2, 1, 1, 1)
    assert found["calibration"]["ece"] == pytest.approx(0.3)
    lost = summarize(
        [{"loss": 4.0, "tokens": 2} | record(CASE, "p", None, []) | {"gold": None}, too_long(CASE, Kind.open)]
    )
    assert lost["loss"]["mean"] == 2.0 and lost["too_long"] == 1
    assert "too_long" not in summarize(records[:1])


def test_a_question_that_the_server_found_too_long_is_recorded_as_such() -> None:
    def write(prompts: Sequence[str]) -> Iterator[tuple[int, Written]]:
        yield 0, Written("", cut=False, too_long=True)

    found = list(by_writing(write, reasoning_prompt, [IRON], Kind.choice, Format.think, orders=1, samples=1))
    assert found == [too_long(IRON, Kind.choice)]
