from dataclasses import replace
from pathlib import Path

from medreason.core.cli import composed
from medreason.data.benchmarks import Kind, Question, make_task
from medreason.data.clinical_cases import KINDS, generate_cases
from medreason.data.corpus import read_split
from medreason.data.normalize import normal
from medreason.evaluate.builtin import learned, run_task, seen_in_training, taught_kinds
from medreason.models.prompts import Example
from support import data_config, write_rows


def test_held_out_rows_are_asked_with_what_is_expected(rows_file: Path) -> None:
    split = read_split(data_config(rows_file, "validation_share=0.2"))
    task = run_task("held_out", split)
    assert task.kind is Kind.open and len(task.questions) == len(split.validation)
    first, row = task.questions[0], split.corpus.example(split.validation[0])
    assert (first.question, first.reasoning, first.answer) == (row.question, row.reasoning, row.answer)
    again = run_task("held_out", read_split(data_config(rows_file, "validation_share=0.3")))
    assert {one.id for one in task.questions} <= {one.id for one in again.questions}  # known by content


def test_clinical_cases_are_the_same_for_every_run_but_for_those_it_learned(rows_file: Path, tmp_path: Path) -> None:
    split = read_split(data_config(rows_file))
    task = run_task("clinical_cases", split)
    assert task.kind is Kind.exact and {one.subject for one in task.questions} == set(KINDS)
    known = {normal(one.question) for one in learned(split)}
    assert not known & {normal(one.question) for one in task.questions}
    write_rows(tmp_path / "known.jsonl", [Example(one.question, "r", one.answer) for one in task.questions[:30]])
    other = read_split(data_config(tmp_path / "known.jsonl"))
    left = {one.id for one in run_task("clinical_cases", other).questions}
    learned_ids = {one.id for one in task.questions[:30] if normal(one.question) in
                   {normal(each.question) for each in learned(other)}}  # fmt: skip
    assert learned_ids and not learned_ids & left


def test_clinical_cases_are_of_the_kinds_that_the_run_was_taught() -> None:
    quickstart = composed("experiments=quickstart").data
    task = run_task("clinical_cases", None, taught_kinds(quickstart))
    assert {one.subject for one in task.questions} == {"kidney_stage", "body_mass", "diabetes"}
    assert taught_kinds(replace(quickstart, case_kinds=None)) == tuple(KINDS)
    assert taught_kinds(composed("data=local", "data.path=rows.jsonl").data) == tuple(KINDS)


def test_a_question_whose_words_were_learned_is_named() -> None:
    stem = "A 34-year-old man with sudden tearing chest pain radiating to the back and unequal arm pressures has"
    fresh = "Which enzyme is deficient in a newborn with a musty odour, eczema and fair skin?"
    options = {"A": "x", "B": "y"}
    asked = [Question("1", stem, options, "A", "", ""), Question("2", fresh, options, "A", "", "")]
    task = make_task("quiz", [(question.id, question) for question in asked])
    rows = [Example(f"{stem} which condition?", "r", "a"), *generate_cases(5, seed=1)]
    assert seen_in_training(task, rows) == {"1"}
    assert seen_in_training(replace(task, questions=task.questions[1:]), rows) == set()
