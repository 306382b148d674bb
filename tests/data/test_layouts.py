import json
from typing import Any

import pytest

from medreason.config import Columns, ConfigError, Format
from medreason.data.examples import Rejects, read_examples
from medreason.data.sources import read_file
from medreason.evaluate.extraction import strict_choice
from medreason.models.prompts import Example
from support import SHARED

BY_NAME = Columns(None, None, None)
USER = {"role": "user", "content": "q?"}
LEARNED = Example("q?", "because", "a")


def read(*rows: Any, columns: Columns = BY_NAME, style: Format = Format.think) -> list[Example]:
    """The examples of rows that are all good, every column of which was read."""
    rejects = Rejects()
    examples, unread = read_examples(list(enumerate(rows, 1)), columns, style, 1000, "f", rejects)
    assert not rejects.counts and not unread
    return [example for _, example in examples]


def refused(cells: Any, columns: Columns = BY_NAME) -> str:
    """The reason for which a row is not learned from."""
    rejects = Rejects()
    examples, _ = read_examples([(1, cells)], columns, Format.think, 1000, "f", rejects)
    assert not examples and rejects.counts.total() == 1
    return str(next(iter(rejects.counts)))


def unread(*rows: Any, columns: Columns = BY_NAME) -> list[str]:
    return read_examples(list(enumerate(rows, 1)), columns, Format.think, 1000, "f", Rejects())[1]


def chat(**assistant: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": "a"} | assistant]}


@pytest.mark.parametrize(
    "cells",
    [
        {"Question": "q?", "Complex_CoT": "because", "Response": "a"},
        {"question": "q?", "complex cot": "because", "RESPONSE": "a"},
        {"Question": "q?", "thinking": "because", "Response": "a"},
        {"QUESTION": "q?", "Reasoning": "because", "Answer": "a"},
        {"question": "q?", "chain-of-thought": "because", "answer": "a"},
        {"question": "q?", "answer": "<think>because</think>a"},
        {"prompt": "q?", "completion": "<think>because</think>a"},
        {"Prompt": "q?", "reasoning": "because", "Completion": "a"},
        {"问题": "q?", "思考过程": "because", "答案": "a"},
        {"instruction": "q?", "output": "a", "reasoning": "because"},
        {"instruction": "q?", "input": " ", "output": "a", "Complex_CoT": "because"},
        {"instruction": "q?", "input": None, "output": "<think>because</think>a", "reasoning": "because"},
        {"instruction": "q?", "response": "a", "rationale": "because"},
        {"prompt": [USER], "completion": [{"role": "assistant", "content": "a", "reasoning": "because"}]},
        chat(reasoning_content="because"),
        chat(reasoning="because"),
        chat(thinking="because"),
        chat(content="<think>because</think>a", reasoning_content="because"),
        chat(content=[{"type": "thinking", "thinking": "because"}, {"type": "text", "text": "a"}]),
        chat(content=[{"type": "reasoning", "text": "because"}, "a"]),
        chat(reasoning_content="because", tool_calls=[], name=None),
        chat() | {"reasoning": "because"},
        {"messages": [{"role": "User", "content": [{"type": "text", "text": "q?"}]},
                      {"role": "reasoning", "content": "because"}, {"role": "assistant", "content": "a"}]},
        {"messages": json.dumps(chat(thinking="because")["messages"])},
        {"conversations": [{"from": "human", "value": "q?"}, {"from": "gpt", "value": "<think>because</think>a"}]},
        {"conversations": [{"from": "human", "value": "q?"}, {"from": "gpt", "value": "a", "thinking": "because"}]},
        {"Question": "q?", "Complex_CoT": "because", "Response": "a", "history": "[]", "tools": [], "system": " "},
    ],
)  # fmt: skip
def test_reasoning_is_learned_wherever_it_stands(cells: dict[str, Any]) -> None:
    assert read(cells) == [LEARNED]


@pytest.mark.parametrize(
    ("cells", "question"),
    [
        ({"system": "Be brief.", "instruction": "q?", "input": "", "output": "a"}, "Be brief.\n\nq?"),
        ({"instruction": "q?", "context": "pH 7.2", "response": "a"}, "pH 7.2\n\nq?"),
        ({"system": "Be brief.", "context": "pH 7.2", "question": "q?", "answer": "a"}, "Be brief.\n\npH 7.2\n\nq?"),
        ({"system": "Be brief."} | chat(), "Be brief.\n\nq?"),
        ({"system": "Be brief.", "messages": [{"role": "system", "content": "Be brief."}, *chat()["messages"]]},
         "Be brief.\n\nq?"),
        ({"messages": [{"role": "developer", "content": "Be brief."}, *chat()["messages"]]}, "Be brief.\n\nq?"),
        ({"system": "Be brief.", "conversations": [{"from": "human", "value": "q?"}, {"from": "gpt", "value": "a"}]},
         "Be brief.\n\nq?"),
        ({"System Prompt": "Be brief.", "Question": "q?", "Answer": "a"}, "Be brief.\n\nq?"),
    ],
)  # fmt: skip
def test_what_is_said_before_a_question_is_part_of_it(cells: dict[str, Any], question: str) -> None:
    assert read(cells) == [Example(question, "", "a")]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"instruction": "q?", "output": "a", "history": [["q0", "a0"]]}, "history: earlier turns and tools are not"),
        ({"tools": [{"name": "f"}]} | chat(), "tools: earlier turns and tools are not learned"),
        (chat(content=None, tool_calls=[{"function": {"name": "f"}}]), "messages hold tool_calls: calls"),
        ({"messages": [USER, {"role": "tool", "content": "3"}, *chat()["messages"]]}, "messages hold a turn of"),
        ({"messages": chat()["messages"] * 2}, "messages are not one question and one answer"),
        ({"conversations": chat()["messages"] + [USER]}, "conversations are not one question and one answer"),
        (chat(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "content holds image_url, not text"),
        (chat(content="<think>so</think>a", reasoning_content="because"), "reasoning in two places"),
        ({"instruction": "q?", "output": "<think>so</think>a", "thinking": "because"}, "reasoning in two places"),
        (chat(reasoning_content=3), "reasoning_content is int, not text"),
        ({"instruction": "q?", "output": "a", "system": ["x"]}, "system is list, not text"),
        ({"question": "q?", "answer": "a", "reasoning": ["x", "y"]}, "reasoning is list, not text"),
        ({"question": "q?", "opa": "x", "opb": "y", "opc": "z", "opd": "w", "cop": 4}, "cop is 4, not from 0 to 3"),
        ({"question": "q?", "options": {"A": "x", "B": "y"}, "answer": "C"}, "answer is C, not one of A, B"),
        ({"question": "q?", "options": "x; y", "answer": "A"}, "options is neither a list nor a mapping"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused_with_its_reason(cells: dict[str, Any], reason: str) -> None:
    assert refused(cells).startswith(reason)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({"Question": "q", "question": "p", "Complex_CoT": "c", "Response": "a"}, "Question and question could each"),
        ({"question": "q", "answer": "a", "Answer": "b"}, "be the answer; name one with data.columns.answer=NAME"),
        ({"question": "q", "answer": "a", "response": "b"}, "answer and response could each be the answer"),
        ({"instruction": "q", "output": "a", "cot": "c", "thinking": "d"}, "cot and thinking could each be the"),
        ({"System": "s", "system": "t", "question": "q", "answer": "a"}, "could each be the system text; rename or"),
    ],
)  # fmt: skip
def test_columns_that_could_each_be_meant_are_refused_in_one_line(cells: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(cells)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_twin_that_is_empty_or_not_named_does_not_stand_in_the_way() -> None:
    assert read({"question": "q?", "answer": "a", "Answer": ""}) == [Example("q?", "", "a")]
    named = Columns("question", None, "answer")
    rows = {"question": "q?", "answer": "a", "response": "b", "Answer": "c"}
    assert unread(rows, columns=named) == ["Answer", "response"]


def test_what_nothing_is_learned_from_is_named() -> None:
    row = {"Question": "q?", "Complex_CoT": "c", "Response": "a"}
    assert unread(row | {"id": 3, "notes": None}, row | {"source": "book"}) == ["id", "source"]
    assert unread(chat(name="Bob", weight=1), chat() | {"question": "q?"}) == [
        "messages[].name", "messages[].weight", "question",
    ]  # fmt: skip


def test_a_named_reasoning_column_is_read_in_every_layout() -> None:
    named = Columns(None, "why", None)
    for cells in ({"instruction": "q?", "output": "a"}, chat(), {"question": "q?", "answer": "a"}):
        assert read(cells | {"why": "because"}, columns=named) == [LEARNED]


def test_a_named_question_without_an_answer_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"no column for the answer among ask, instruction, output2.*data.columns.answer"
    ):
        read({"ask": "q", "instruction": "p", "output2": "a"}, columns=Columns("ask", None, None))


CHOICE = "Which?\nA. Iron\nB. Zinc\nC. Tin"


@pytest.mark.parametrize(
    "cells",
    [
        {"question": "Which?", "options": {"A": "Iron", "B": "Zinc", "C": "Tin"}, "answer": "B"},
        {"question": "Which?", "options": {"C": "Tin", "A": "Iron", "B": "Zinc", "D": None}, "answer": "b."},
        {"question": "Which?", "options": '{"A": "Iron", "B": "Zinc", "C": "Tin"}', "answer": "Zinc"},
        {"Question": "Which?", "Choices": ["Iron", "Zinc", "Tin"], "Answer": 1},
        {"question": "Which?", "options": {"A": "Iron", "B": "Zinc", "C": "Tin"}, "answer": "Zinc", "answer_idx": "B"},
        {"question": "Which?", "opa": "Iron", "opb": "Zinc", "opc": "Tin", "cop": "1", "exp": None},
        {"question": "Which?", "A": "Iron", "B": "Zinc", "C": "Tin", "D": "", "answer": "(B)"},
        {"question": "Which?", "Option A": "Iron", "Option B": "Zinc", "Option C": "Tin", "Correct Option": "B"},
    ],
)  # fmt: skip
def test_multiple_choice_is_asked_with_its_options_and_answered_with_letter_and_text(cells: dict[str, Any]) -> None:
    (example,) = read(cells)
    assert example == Example(CHOICE, "", "The answer is B. Zinc")
    assert strict_choice(example.answer, {"A": "Iron", "B": "Zinc", "C": "Tin"}) == "B"


def test_an_explanation_of_medmcqa_is_its_reasoning_and_an_answer_in_words_stays() -> None:
    cells = {"question": "Which?", "opa": "Iron", "opb": "Zinc", "opc": "Tin", "cop": 1, "exp": "Zinc heals."}
    assert read(cells) == [Example(CHOICE, "Zinc heals.", "The answer is B. Zinc")]
    options = {"A": "Iron", "B": "Zinc", "C": "Tin"}
    assert read({"question": "Which?", "options": options, "answer": "Zinc, since it heals."})[0].answer == (
        "Zinc, since it heals."
    )


def test_a_table_without_a_line_of_names_does_not_fill_the_screen() -> None:
    with pytest.raises(ConfigError) as caught:
        read({"x" * 3000: "a", **{f"column {n}": "b" for n in range(40)}})
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("file", ["mcq_medmcqa_dev_1000", "mcq_mmlu_medical_test", "mcq_pubmedqa_nontest"])
def test_real_questions_commit_to_their_answer(file: str) -> None:
    path = SHARED / f"{file}.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}")
    rows = read_file(path)
    rejects = Rejects()
    examples, left = read_examples(rows, BY_NAME, Format.think, 100_000, "f", rejects)
    assert not rejects.counts and set(left) <= {"id", "orig_id", "source", "long_answer"}
    for (_, example), (_, cells) in list(zip(examples, rows, strict=True))[:200]:
        assert isinstance(cells, dict)
        assert strict_choice(example.answer, cells["options"]) == cells["answer"]
        assert example.question.startswith(cells.get("context") or cells["question"].strip())
