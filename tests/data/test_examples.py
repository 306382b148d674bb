from typing import Any

import pytest

from medreason.config import Columns, ConfigError, Format, OnBadRow
from medreason.data.examples import LOOKED_AT, Rejects, read_examples, settle_rejects
from medreason.models.prompts import Example

BY_NAME = Columns(None, None, None)


def read(
    *rows: Any, columns: Columns = BY_NAME, style: Format = Format.think, max_chars: int = 1000
) -> tuple[list[Example], Rejects]:
    rejects = Rejects()
    numbered = list(enumerate(rows, 1))
    examples, _ = read_examples(numbered, columns, style, max_chars, "f.jsonl", rejects)
    return [example for _, example in examples], rejects


def row(**changes: Any) -> dict[str, Any]:
    return {"Question": "q?", "Complex_CoT": "because", "Response": "a"} | changes


def test_the_medical_o1_columns_are_recognised() -> None:
    assert read(row(), row(Response=" b\n"))[0] == [Example("q?", "because", "a"), Example("q?", "because", "b")]


@pytest.mark.parametrize(
    ("style", "output"),
    [
        (Format.think, "<think>low</think>Acidosis"),
        (Format.huatuo, "## Thinking\n\nlow\n\n## Final Response\n\nAcidosis"),
        (Format.huatuo, "<think>low</think>Acidosis"),
        (Format.seed, "### Complex_CoT:\nlow\n\n### Response:\nAcidosis"),
    ],
)
def test_instruction_tables_are_read_and_their_reasoning_found(style: Format, output: str) -> None:
    examples, _ = read(
        {"instruction": "Explain.", "input": "pH 7.2", "output": output},
        {"instruction": "Say hello.", "input": "", "output": "Hello"},
        {"instruction": "Say hello.", "output": "Hello"},
        style=style,
    )
    assert examples == [
        Example("Explain.\n\npH 7.2", "low", "Acidosis"), *[Example("Say hello.", "", "Hello")] * 2,
    ]  # fmt: skip


def test_chats_of_one_question_and_one_answer_are_read() -> None:
    system, user, written = (
        {"role": role, "content": text}
        for role, text in (("system", "Be brief."), ("user", "q?"), ("assistant", "<think>r</think>a"))
    )
    examples, rejects = read(
        {"messages": [user, written]},
        {"messages": [system, user, written]},
        {"messages": [user, written, user, written]},
        {"messages": [user]},
        {"messages": "q?"},
        {"messages": [user, {"role": "assistant", "content": None}]},
    )
    assert examples == [Example("q?", "r", "a"), Example("Be brief.\n\nq?", "r", "a")]
    assert rejects.counts == {
        "messages are not one question and one answer": 2, "messages is not a list of turns": 1, "no content": 1,
    }  # fmt: skip


def test_columns_are_named_in_the_configuration() -> None:
    cells = {"ask": "q?", "cot": "because", "reply": "a", "Question": "another"}
    assert read(cells, columns=Columns("ask", "cot", "reply"))[0] == [Example("q?", "because", "a")]
    assert read({"ask": "q?", "Response": "<think>r</think>a"}, columns=Columns("ask", None, None))[0] == [
        Example("q?", "r", "a")
    ]
    with pytest.raises(ConfigError, match=r"data.columns.reasoning=cott: f.jsonl has no such column .did you mean cot"):
        read(cells, columns=Columns("ask", "cott", "reply"))


def test_a_column_that_only_a_late_row_fills_counts_for_all() -> None:
    early = [{"instruction": f"q{n}", "output": "a", "thinking": ""} for n in range(LOOKED_AT + 5)]
    bad, late = {"instruction": "", "output": "a"}, {"instruction": "q", "output": "a", "rationale": "so", "notes": "n"}
    examples, rejects = read(bad, *early, late, bad)
    assert examples[-1] == Example("q", "so", "a") and len(examples) == LOOKED_AT + 6
    assert rejects.places == {"empty instruction": ["f.jsonl:1", f"f.jsonl:{LOOKED_AT + 8}"]}, "each row counts once"
    with pytest.raises(ConfigError, match="columns thinking and rationale could each be the reasoning"):
        read(*early, late | {"thinking": "t"})


def test_a_table_is_recognised_by_columns_that_no_early_row_has() -> None:
    examples, rejects = read(*[{"question": "q"}] * LOOKED_AT, {"question": "q", "answer": "a"})
    assert examples == [Example("q", "", "a")] and rejects.counts == {"no answer": LOOKED_AT}


def test_a_table_that_is_not_recognised_is_refused_by_its_columns() -> None:
    with pytest.raises(ConfigError, match=r"columns text; needed: Question, Complex_CoT, Response, or instruction"):
        read({"text": "q"})
    with pytest.raises(ConfigError, match=r"columns Question, Response; needed"):
        read({"Question": "q", "Response": "a"})  # reasoning is not left out by chance


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (row(Question=None), "no Question"),
        (row(Complex_CoT="  "), "empty Complex_CoT"),
        (row(Response=3), "Response is int, not text"),
        (row(Response=["a"]), "Response is list, not text"),
        (row(Question="caf\udce9"), "question is not valid UTF-8"),
        (row(Complex_CoT="caf\ufffd"), "reasoning is not valid UTF-8"),
        (row(Complex_CoT="a\x00b"), "control character in reasoning"),
        (row(Response="a\x1b[31mb"), "control character in answer"),
        (row(Complex_CoT="x" * 1001), "reasoning of more than 1000 characters"),
        (row(Complex_CoT="so </think> then"), "holds </think>, a mark of data.format=think"),
        ({"Question": "q?", "Complex_CoT": "because"}, "no Response"),
        ("not JSON", "not JSON"),
    ],
)
def test_a_row_that_cannot_be_learned_from_is_counted_by_reason_and_place(cells: Any, reason: str) -> None:
    examples, rejects = read(row(), cells, row(), cells)
    assert len(examples) == 2
    assert rejects.counts == {reason: 2}
    assert rejects.places == {reason: ["f.jsonl:2", "f.jsonl:4"]}


def test_what_is_no_fault_passes() -> None:
    texts = ["línea\n\tdos\r\n", "中文。没有问题。", "β-блокатор ≥ 2·10⁹/L 🙂", "a < b and </b>", "## Thinking aloud"]
    examples, rejects = read(*(row(Complex_CoT=text) for text in texts))
    assert [example.reasoning for example in examples] == [text.strip() for text in texts]
    assert not rejects.counts


def test_the_policy_says_whether_bad_rows_stop_the_run() -> None:
    rejects = Rejects()
    settle_rejects(rejects, 10, "f", OnBadRow.error, 0.0)
    for number in range(1, 8):
        rejects.add("no answer" if number < 7 else "not JSON", f"f:{number}")
    with pytest.raises(ConfigError) as caught:
        settle_rejects(rejects, 100, "f", OnBadRow.error, 1.0)
    assert str(caught.value) == (
        "data.path=f: 7 of 100 rows cannot be learned from: 6 no answer (f:1, f:2, f:3, f:4, f:5, ...); "
        "1 not JSON (f:7); mend them or set data.on_bad_row=skip"
    )
    settle_rejects(rejects, 100, "f", OnBadRow.skip, 0.07)
    with pytest.raises(ConfigError, match=r"more than data.max_bad_share=0.069; mend them or raise it"):
        settle_rejects(rejects, 100, "f", OnBadRow.skip, 0.069)
