import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from medreason.config import ConfigError
from medreason.data import known_benchmarks
from medreason.data.benchmarks import (
    Kind,
    Question,
    Rubric,
    from_medmcqa,
    likelihood_prompt,
    make_task,
    permuted,
    reasoning_prompt,
)
from medreason.data.known_benchmarks import (
    HUB,
    MMLU_SUBJECTS,
    from_medqa,
    from_mmlu,
    from_mmlu_pro_health,
    from_pubmedqa,
    read_task,
)
from support import ROOT, SHARED

SCURVY = Question(
    "q1", "Which vitamin prevents scurvy?", {"A": "Vitamin A", "B": "Vitamin C", "C": "Vitamin D"}, "B", "", ""
)


def row(**changes: Any) -> dict[str, Any]:
    options = {"A": "Iron", "B": "Zinc"}
    return {"id": "q1", "question": "Which?", "options": options, "answer": "B", "source": "S test/anatomy"} | changes


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows))
    return str(path)


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as error:
        read_task(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_is_read_with_its_subjects_and_contexts(tmp_path: Path) -> None:
    path = written(
        tmp_path / "mine.jsonl", row(), row(id=2, subject="diet", context=" Abstract. "), row(id=None, source=None)
    )
    task = read_task(path)
    assert task.name == "mine"
    assert task.questions == (
        Question("q1", "Which?", {"A": "Iron", "B": "Zinc"}, "B", "anatomy", ""),
        Question("2", "Which?", {"A": "Iron", "B": "Zinc"}, "B", "diet", "Abstract."),
        Question("3", "Which?", {"A": "Iron", "B": "Zinc"}, "B", "", ""),
    )


def test_the_same_questions_have_one_fingerprint_in_every_kind_of_file(tmp_path: Path) -> None:
    rows = [row(), row(id="q2", options={"A": "1", "B": "2", "C": "3"})]
    made = {read_task(written(tmp_path / "a.jsonl", *rows)).fingerprint}
    (tmp_path / "b.json").write_text(json.dumps(rows))
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")  # gives both rows an option C
    with (tmp_path / "d.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(each | {"options": json.dumps(each["options"])} for each in rows)
    made |= {read_task(str(tmp_path / name)).fingerprint for name in ("b.json", "c.parquet", "d.csv")}
    assert len(made) == 1
    for changed in (row(answer="A"), row(question="What?"), row(context="c"), row(options={"B": "Zinc", "A": "Tin"})):
        assert read_task(written(tmp_path / "e.jsonl", changed, rows[1])).fingerprint not in made


@pytest.mark.parametrize("name", ["medqa2", "MedQA", "pubmed_qa", "mmlu-medical"])
def test_a_misspelt_name_brings_the_nearest(name: str) -> None:
    near = {"medqa2": "medqa", "MedQA": "medqa", "pubmed_qa": "pubmedqa", "mmlu-medical": "mmlu_medical"}[name]
    assert refusal(name) == f"benchmarks={name}: no such benchmark or file (did you mean {near}?)"


def test_an_unknown_name_brings_all_and_a_missing_file_says_so(tmp_path: Path) -> None:
    assert refusal("").endswith("gpqa_biology)") and refusal("zzz").endswith(f"(known: {', '.join(HUB)})")
    assert "absent.jsonl: no such file" in refusal(str(tmp_path / "absent.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    assert "the file is empty" in refusal(str(tmp_path / "empty.jsonl"))
    (tmp_path / "blank.json").write_text("[]")
    assert "no rows" in refusal(str(tmp_path / "blank.json"))
    (tmp_path / "notes.txt").write_text("hello")
    assert "cannot read .txt" in refusal(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"id": 1, "options": {"A": "x", "B": "y"}, "answer": "A"}, "no `question`"),
        ({"id": 1, "question": "q", "answer": "A"}, "no `options`"),
        ({"id": 1, "question": "q", "options": {"A": "x", "B": "y"}}, "no `answer`"),
        (row(question=" "), "`question` is empty"),
        (row(answer=2), "answer 'C' is not among the options A, B"),
        (row(answer=True), "`answer` is True, not an option's index"),
        (row(answer=["B"]), "`answer` is not text"),
        (row(answer="C"), "answer 'C' is not among the options A, B"),
        (row(answer="b"), "answer 'b' is not among the options A, B"),
        (row(options={"A": "x"}), "1 options; needed: 2 to 10"),
        (row(options={letter: letter for letter in "ABCDEFGHIJK"}), "11 options; needed: 2 to 10"),
        (row(options={"A": "x", "C": "y"}), "options are called A, C; needed: A, B and so on"),
        (row(options={"AB": "x", "C": "y"}), "options are called AB, C; needed: A, B and so on"),
        (row(question="caf\udce9"), "bytes that are not UTF-8"),
        (row(options={"A": "x", "B": " "}), "option B is empty"),
        (row(options="x"), "`options` is not of the form"),
        (row(options=["x", ""]), "option B is empty"),
        (row(options=[]), "0 options; needed: 2 to 10"),
        ("{broken", "not JSON"),
        ("[1]", "not an object"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named_by_its_number(tmp_path: Path, bad: Any, reason: str) -> None:
    path = written(tmp_path / "f.jsonl", row(id="good"), bad)
    assert refusal(path).startswith(f"benchmarks={path}: row 2: {reason}")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"question": "q", "answer": " "}, "no `options`"),
        ({"question": "q", "answer": 1}, "no `options`"),
        ({"question": "q", "answer": ["text"]}, "no `options`"),
        ({"answer": "Text."}, "no `question`"),
        ({"question": "q", "answer": "caf\udce9"}, "bytes that are not UTF-8"),
        ({"question": "q", "rubrics": []}, "`rubrics` holds no {criterion, points} with points above 0"),
        ({"question": "q", "rubrics": [{"criterion": "c", "points": -1}]}, "`rubrics` holds no {criterion, points}"),
        ({"question": "q", "rubrics": [{"criterion": "c", "points": 1}, {"criterion": "c"}]},
         "`rubrics`: the 2. has no number of `points`"),
        ({"question": "q", "rubrics": [{"criterion": "c", "points": math.inf}]}, "`rubrics`: the 1. has no number"),
        ({"question": "q", "rubrics": [{"criterion": " ", "points": 1}]}, "`rubrics`: the 1.: `criterion` is empty"),
        ({"question": "q", "rubrics": ["c"]}, "`rubrics`: the 1. has no number of `points`"),
        ({"prompt": [], "rubrics": [{"criterion": "c", "points": 1}]}, "`prompt` must begin and end with a turn of"),
        ({"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
          "rubrics": [{"criterion": "c", "points": 1}]}, "`prompt` must begin and end with a turn of the user"),
        ({"prompt": [{"role": "tool", "content": "q"}], "answer": "Text."}, "`prompt`: the 1. turn is not of the form"),
        ({"prompt": [{"role": "user", "content": " "}], "answer": "Text."}, "`prompt` ends with an empty turn"),
    ],
)  # fmt: skip
def test_an_open_row_that_cannot_be_judged_is_named_by_its_number(tmp_path: Path, bad: Any, reason: str) -> None:
    path = written(tmp_path / "f.jsonl", {"question": "q", "answer": "Text."}, bad)
    assert refusal(path).startswith(f"benchmarks={path}: row 2: {reason}")


def test_rows_without_options_are_open_questions_with_a_reference_or_rubrics(tmp_path: Path) -> None:
    bare = {"question": "Why?", "answer": "So.", "context": "C", "options": None}
    chat = {"prompt": json.dumps([{"role": "user", "content": "Who?"}]), "Answer": "He."}
    task = read_task(written(tmp_path / "f.jsonl", bare, chat))
    assert task.kind is Kind.open
    assert task.questions == (Question("1", "Why?", {}, "So.", "", "C"), Question("2", "Who?", {}, "He.", "", ""))
    path = tmp_path / "f.csv"
    path.write_text('id,question,rubrics\nx,Why?,"[{""criterion"": ""Says so"", ""points"": 2, ""tags"": [""t""]}]"\n')
    (found,) = read_task(str(path)).questions
    assert found == Question("x", "Why?", {}, "", "", "", rubrics=(Rubric("Says so", 2, ("t",)),))


def test_a_chat_is_its_last_question_after_pairs_of_turns(tmp_path: Path) -> None:
    said = [
        ("system", "Be brief."),
        ("user", "Pain."),
        ("user", "In the chest."),
        ("assistant", "When?"),
        ("user", "Now."),
    ]
    row = {"prompt": [{"role": role, "content": text} for role, text in said], "answer": "Call 112."}
    (found,) = read_task(
        written(tmp_path / "f.jsonl", row | {"prompt_id": "p", "example_tags": ["theme:heart"]})
    ).questions
    assert found.earlier == (("Be brief.\n\nPain.\n\nIn the chest.", "When?"),) and found.question == "Now."
    assert (found.id, found.subject) == ("p", "heart")


def test_a_file_is_of_one_kind(tmp_path: Path) -> None:
    path = written(tmp_path / "f.jsonl", row(), {"question": "q", "answer": "Text."})
    assert refusal(path) == f"benchmarks={path}: row 1 has options and {path}: row 2 has none; part them into two files"


def test_what_open_questions_have_changes_their_fingerprint_and_that_of_no_other(tmp_path: Path) -> None:
    """The literal is what earlier releases wrote down: their evaluations go on."""
    assert make_task("quiz", [("", SCURVY)]).fingerprint == "67f67bbc46d1fb00"
    asked = {
        "prompt_id": "p",
        "prompt": [{"role": "user", "content": "q"}],
        "rubrics": [{"criterion": "c", "points": 1}],
    }
    other = asked | {"rubrics": [{"criterion": "c", "points": 2}]}
    prints = {read_task(written(tmp_path / "f.jsonl", each)).fingerprint for each in (asked, other)}
    assert len(prints) == 2


def test_names_in_any_case_lists_of_options_and_medmcqas_own_columns_are_read(tmp_path: Path) -> None:
    asked = Question("q1", "Which?", {"A": "Iron", "B": "Zinc"}, "B", "", "")
    for cells in (
        {"ID": "q1", "Question": "Which?", "Options": ["Iron", "Zinc"], "Answer": "B"},
        {"id": "q1", "question": "Which?", "choices": ["Iron", "Zinc"], "answer": 1},
    ):
        assert read_task(written(tmp_path / "f.jsonl", cells)).questions == (asked,)
    (tmp_path / "f.csv").write_text("Question,opa,opb,opc,opd,cop\nWhich?,Iron,Zinc,Tin,Lead,1\n")
    (found,) = read_task(str(tmp_path / "f.csv")).questions
    assert found == replace(asked, id="1", options={"A": "Iron", "B": "Zinc", "C": "Tin", "D": "Lead"})


def test_of_a_folder_the_held_out_questions_are_asked_and_the_rest_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "quiz"
    folder.mkdir()
    for name, number in (("train.jsonl", 1), ("test.jsonl", 2), ("._test.jsonl", 3)):
        written(folder / name, row(id=number))
    said: list[str] = []
    assert [question.id for question in read_task(str(folder), said.append).questions] == ["2"]
    assert said == [f"benchmarks={folder}: not read: ._test.jsonl (hidden), train.jsonl (the split train)"]


def test_two_rows_with_one_id_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "f.jsonl", row(), row(id="q2"), row())
    assert refusal(path) == f"benchmarks={path}: row 3: id 'q1' is also that of {path}: row 1"


def test_a_row_of_medqa() -> None:
    cells = {
        "question": "A 21-year-old ... ", "answer": "Reassurance", "meta_info": "step2&3", "answer_idx": "C",
        "options": {"A": "Surgery", "B": "Aspirin", "C": "Reassurance", "D": "MRI"}, "metamap_phrases": ["21 year old"],
    }  # fmt: skip
    assert from_medqa(7, cells) == Question("medqa-7", "A 21-year-old ...", cells["options"], "C", "step2&3", "")


def test_a_row_of_medmcqa() -> None:
    cells = {
        "id": "45258d3d", "question": "Which nerve?", "opa": "Vagus", "opb": "Facial", "opc": "Optic", "opd": "Ulnar",
        "cop": 1, "choice_type": "single", "exp": None, "subject_name": "Anatomy", "topic_name": None,
    }  # fmt: skip
    options = {"A": "Vagus", "B": "Facial", "C": "Optic", "D": "Ulnar"}
    assert from_medmcqa(1, cells) == Question("45258d3d", "Which nerve?", options, "B", "Anatomy", "")


def test_a_row_of_pubmedqa() -> None:
    cells = {
        "pubid": 21645374, "question": "Do mitochondria matter?", "long_answer": "...", "final_decision": "no",
        "context": {"contexts": ["Cells die.", "We looked."], "labels": ["BACKGROUND", "RESULTS"], "meshes": ["Leaf"]},
    }  # fmt: skip
    options = {"A": "yes", "B": "no", "C": "maybe"}
    context = "BACKGROUND: Cells die.\nRESULTS: We looked."
    assert from_pubmedqa(1, cells) == Question(
        "pubmedqa-21645374", "Do mitochondria matter?", options, "B", "", context
    )


def test_a_row_of_mmlu() -> None:
    cells = {"question": "Which bone?", "subject": "anatomy", "choices": ["Ulna", "Tibia", "Rib", "Femur"], "answer": 3}
    options = {"A": "Ulna", "B": "Tibia", "C": "Rib", "D": "Femur"}
    assert from_mmlu(5, cells) == Question("mmlu-anatomy-5", "Which bone?", options, "D", "anatomy", "")


def test_rows_of_mmlu_pro_are_those_on_health() -> None:
    cells = {
        "question_id": 6118, "question": "Which?", "options": [f"option {index}" for index in range(10)], "answer": "J",
        "answer_index": 9, "cot_content": "", "category": "health", "src": "ori_mmlu-virology",
    }  # fmt: skip
    found = from_mmlu_pro_health(1, cells)
    assert (
        found is not None and found.id == "mmlu-pro-6118" and found.options["J"] == "option 9" and found.answer == "J"
    )
    assert from_mmlu_pro_health(1, cells | {"category": "law"}) is None


def from_hub(monkeypatch: pytest.MonkeyPatch, rows: dict[str | None, list[dict[str, Any]]]) -> list[tuple[Any, ...]]:
    """The hub holds these rows by configuration; returns what is asked of it."""
    asked = []

    def read_hub(path: str, name: str | None, *more: Any) -> Any:
        asked.append((path, name, *more))
        return enumerate(rows[name], 1)

    monkeypatch.setattr(known_benchmarks, "read_hub", read_hub)
    return asked


def test_mmlu_is_asked_in_all_six_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 0}
    asked = from_hub(monkeypatch, {subject: [cells | {"subject": subject}] * 2 for subject in MMLU_SUBJECTS})
    task = read_task("mmlu_medical")
    assert task.name == "mmlu_medical" and len(task.questions) == 12
    assert [question.subject for question in task.questions[::2]] == list(MMLU_SUBJECTS)
    assert asked[0] == ("cais/mmlu", "anatomy", None, ("test",), "benchmarks")


TEN = dict(zip("ABCDEFGHIJ", (f"option {index}" for index in range(10)), strict=True))
GPQA = {"Question": "Which enzyme?", "Correct Answer": "lyase", "Record ID": "rec1", "Subdomain": "Genetics",
        "Incorrect Answer 1": "kinase", "Incorrect Answer 2": "ligase", "Incorrect Answer 3": "lipase"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "cells", "letter", "right", "subject", "options"),
    [
        ("medxpertqa", {"id": "Text-1", "question": "Which?\nAnswer Choices: (A) option 0 (B) option 1", "options": TEN,
                        "label": "J", "body_system": "Skeletal"}, "J", "option 9", "Skeletal", 10),
        ("medbullets4", {"idx": "7", "question": "Which?", "answer": "C",
                         "options": {"A": "a", "B": "b", "C": "c", "D": "d", "E": None}}, "C", "c", "", 4),
        ("medbullets5", {"idx": "7", "question": "Which?", "answer": "e",
                         "options": {"A": "a", "B": "b", "C": "c", "D": "d", "E": "e"}}, "E", "e", "", 5),
        ("careqa", {"unique_id": "u1", "question": "Which?", "op1": "a", "op2": "b", "op3": "c", "op4": "d", "cop": 4,
                    "category": "Nursing"}, "D", "d", "Nursing", 4),
        ("headqa", {"name": "Cuaderno_2013", "qid": 1, "qtext": "Which?", "ra": 2, "category": "biology",
                    "answers": [{"aid": 2, "atext": "b "}, {"aid": 1, "atext": "a"}]}, "B", "b", "biology", 2),
        ("supergpqa_medicine", {"uuid": "x", "question": "Which?", "options": list(TEN.values()), "answer_letter": "I",
                                "discipline": "Medicine", "field": "Surgery"}, "I", "option 8", "Surgery", 10),
        ("metamedqa", {"question": "Which?", "options": {"A": "a", "B": "b", "C": "I don't know"}, "answer_idx": "B",
                       "answer": "b", "meta_info": "step1"}, "B", "b", "step1", 3),
        ("gpqa_biology", GPQA | {"High-level domain": "Biology"}, None, "lyase", "Genetics", 4),
    ],
)  # fmt: skip
def test_a_row_of_each_further_benchmark_becomes_its_question(
    name: str, cells: dict[str, Any], letter: str | None, right: str, subject: str, options: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path, (configuration,), split, _ = HUB[name]
    asked = from_hub(monkeypatch, {configuration: [cells]})
    (question,) = read_task(name).questions
    assert asked == [(path, configuration, None, (split,), "benchmarks")]
    assert question.options[question.answer] == right and letter in (None, question.answer)
    assert (question.subject, len(question.options)) == (subject, options)
    assert "Answer Choices" not in question.question and str(question.id).startswith(name.split("_")[0].rstrip("45"))


def test_rows_of_other_fields_and_questions_that_were_taken_back_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"qtext": "q", "ra": 1, "answers": [{"aid": 1, "atext": "a"}, {"aid": 2, "atext": "b"}]}
    from_hub(monkeypatch, {"en": [kept, kept | {"ra": 0}]})
    assert len(read_task("headqa").questions) == 1
    other = {"uuid": "x", "question": "q", "options": ["a", "b"], "answer_letter": "A", "discipline": "Law"}
    from_hub(monkeypatch, {None: [other, other | {"discipline": "Medicine"}]})
    assert len(read_task("supergpqa_medicine").questions) == 1
    from_hub(monkeypatch, {"gpqa_main": [GPQA | {"High-level domain": "Physics"}]})
    assert refusal("gpqa_biology").endswith("no questions")


def test_options_without_an_order_get_the_same_one_each_time_and_not_always_the_right_one_first() -> None:
    rows = [GPQA | {"High-level domain": "Biology", "Question": f"Which enzyme of {place}?"} for place in range(40)]
    found = [known_benchmarks.from_gpqa_biology(place, row) for place, row in enumerate(rows)]
    assert found == [known_benchmarks.from_gpqa_biology(place, row) for place, row in enumerate(rows)]
    assert {question.answer for question in found if question} == set("ABCD")


@pytest.mark.parametrize("cop", [0, 11, "1", None, True])
def test_a_number_that_no_option_has_is_refused(cop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {"question": "q", "op1": "a", "op2": "b", "op3": "c", "op4": "d", "cop": cop}
    from_hub(monkeypatch, {"CareQA_en": [cells]})
    assert "`cop`" in refusal("careqa")


def test_a_question_without_published_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {"id": "x", "question": "q", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": -1}
    from_hub(monkeypatch, {None: [cells]})
    assert refusal("medmcqa") == "benchmarks=openlifescienceai/medmcqa: row 1: `cop` is -1, not an option's index"


def test_an_unknown_verdict_of_pubmedqa_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from_hub(
        monkeypatch, {"pqa_labeled": [{"question": "q", "context": {"contexts": []}, "final_decision": "perhaps"}]}
    )
    assert refusal("pubmedqa").endswith("pqa_labeled: row 1: answer 'perhaps' is not among the options A, B, C")


@pytest.mark.parametrize("name", list(HUB))
def test_a_hub_data_set_without_network_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("offline\nno route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert f"benchmarks={HUB[name][0]}" in refusal(name)


def test_permuting_options_moves_the_right_answer_along() -> None:
    moved = permuted(SCURVY, [2, 0, 1])
    assert moved.options == {"A": "Vitamin D", "B": "Vitamin A", "C": "Vitamin C"} and moved.answer == "C"
    for order in ([0, 1, 2], [1, 2, 0], [2, 1, 0]):
        other = permuted(SCURVY, order)
        assert other.options[other.answer] == "Vitamin C" and list(other.options) == ["A", "B", "C"]
    assert permuted(SCURVY, [0, 1, 2]) == SCURVY
    assert permuted(permuted(SCURVY, [2, 0, 1]), [1, 2, 0]) == SCURVY


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [1, 2, 3], [0, 1, 2, 3]])
def test_an_order_that_loses_an_option_is_refused(order: list[int]) -> None:
    with pytest.raises(ValueError, match="no order of 3 options"):
        permuted(SCURVY, order)


def test_a_prompt_holds_context_question_options_and_what_to_do() -> None:
    asked = "Which vitamin prevents scurvy?\nA. Vitamin A\nB. Vitamin C\nC. Vitamin D"
    assert likelihood_prompt(SCURVY) == f"{asked}\n\nAnswer with the letter of the correct option."
    with_context = replace(SCURVY, context="Sailors fell ill.")
    assert likelihood_prompt(with_context).startswith(f"Sailors fell ill.\n\n{asked}\n\n")
    prompt = reasoning_prompt(SCURVY)
    assert prompt.startswith(f"{asked}\n\nThink step by step") and '"The answer is X."' in prompt


def test_no_prompt_gives_the_answer_away() -> None:
    for write in (likelihood_prompt, reasoning_prompt):
        assert write(SCURVY) == write(replace(SCURVY, answer="A"))


@pytest.mark.parametrize(
    ("file", "count", "subjects"),
    [("mcq_pubmedqa_nontest", 500, 1), ("mcq_mmlu_medical_test", 1089, 6), ("mcq_medmcqa_dev_1000", 1000, 1)],
)
def test_the_real_benchmarks_are_read_whole(file: str, count: int, subjects: int) -> None:
    path = SHARED / f"{file}.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}")
    task = read_task(str(path))
    assert len(task.questions) == count and len({question.subject for question in task.questions}) == subjects
    assert all(bool(question.context) == file.startswith("mcq_pubmedqa") for question in task.questions)
    assert all(question.options[question.answer] in reasoning_prompt(question) for question in task.questions)


DOCUMENTED = (ROOT / "docs" / "pages" / "how-to" / "own-benchmark.md").read_text(encoding="utf-8")


def documented(kind: str, place: int, folder: Path) -> tuple[Question, ...]:
    """The questions of an example in docs/pages/how-to/own-benchmark.md."""
    file = folder / f"{place}.{kind}"
    file.write_text(re.findall(rf"^```{kind}\n(.*?)^```", DOCUMENTED, re.M | re.S)[place], encoding="utf-8")
    return read_task(str(file)).questions


def test_every_example_of_the_documentation_is_read_as_it_says(tmp_path: Path) -> None:
    vitamins = {"A": "Vitamin A", "B": "Vitamin C", "C": "Vitamin D"}
    organs = {"A": "The liver", "B": "The pancreas"}
    trial = "Of 100 patients, 62 recovered, and 41 of 100 without it."
    assert documented("jsonl", 0, tmp_path) == (
        Question("scurvy", "Which vitamin prevents scurvy?", vitamins, "B", "diet", ""),
        Question("2", "Which organ makes insulin?", organs, "B", "", ""),
        Question("3", "Did the treatment help?", {"A": "yes", "B": "no", "C": "maybe"}, "A", "", trial),
    )
    table, medmcqa = documented("csv", 0, tmp_path), documented("csv", 1, tmp_path)
    assert documented("jsonl", 1, tmp_path) == (
        Question("1", "What causes scurvy?", {}, "A lack of vitamin C", "", ""),
    )
    (chest,) = documented("jsonl", 2, tmp_path)
    assert chest.earlier == (("My chest hurts.", "Since when?"),) and [one.points for one in chest.rubrics] == [7, -5]
    assert [(one.options, one.answer) for one in table] == [(vitamins, "B"), (organs, "B")]
    assert [(one.options, one.answer, one.subject) for one in medmcqa] == [
        (vitamins | {"D": "Vitamin K"}, "B", "Biochemistry")
    ]


def test_the_documentation_names_every_column_that_is_read() -> None:
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in DOCUMENTED.splitlines() if "|" in line)))
    closed = {"question", "options", "choices", "answer", "id", "subject", "context"}
    assert named == closed | {"rubrics", "prompt"}
