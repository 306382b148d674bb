"""Which questions a second stage asks, and which it never does."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medreason.config import ConfigError
from medreason.core.progress import say
from medreason.data import known_benchmarks
from medreason.data.benchmarks import Kind, Task, make_task
from medreason.data.clinical_cases import generate_cases
from medreason.data.corpus import read_split
from medreason.evaluate.builtin import CASES_SEED
from medreason.inference.target import Answerer
from medreason.sample import questions
from medreason.sample.questions import benchmark_questions, exact_task, gated, training_questions
from support import composed

STEM = "A 61-year-old man with long-standing diabetes has a foot ulcer that does not heal; which organism grows first"
QUIZ = [
    {"id": "theirs", "question": f"{STEM}?", "options": ["S. aureus", "E. coli"], "answer": "A"},
    {"id": "own", "question": "Which vitamin cures scurvy?", "options": ["C", "D", "K"], "answer": 0},
]


def answerer(folder: Path, *words: str) -> Answerer:
    """That of a run of clinical cases, without a model."""
    config = composed("experiments=quickstart", "data.cases=300", *words)
    return Answerer(config, None, folder, folder)


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def asked(task: Task) -> set[str]:
    return {question.question for question in task.questions}


def test_a_run_is_asked_the_cases_that_it_learned_and_none_that_it_held_out(tmp_path: Path) -> None:
    run = answerer(tmp_path)
    split = read_split(run.config.data)
    task = training_questions(None, run, say)
    held_out = {one.question for one in split.examples(split.validation)}
    assert asked(task) == {one.question for one in split.examples(split.train)}
    assert held_out and not asked(task) & held_out and task.kind is Kind.exact


def test_a_held_out_case_is_refused_wherever_it_comes_from(tmp_path: Path) -> None:
    run = answerer(tmp_path)
    split = read_split(run.config.data)
    held_out = split.corpus.example(split.validation[0])
    fresh = generate_cases(3, 5, ["anaemia"])
    rows = [{"question": one.question.upper(), "answer": one.answer} for one in (held_out, *fresh)]
    task = training_questions(str(written(tmp_path / "more.jsonl", rows)), run, say)
    left, refused = gated(task, [], split)
    assert [one.benchmark for one in refused] == ["held_out"] and len(left.questions) == 3
    assert held_out.question.upper() not in asked(left)


def test_another_runs_cases_are_asked_but_for_those_held_out_here(tmp_path: Path) -> None:
    from medreason.core.run_directory import write_settings

    here = answerer(tmp_path / "here")
    other = answerer(tmp_path / "other", "data.validation_share=0.01", "data.max_validation_rows=1")
    (tmp_path / "other").mkdir()
    write_settings(other.config, tmp_path / "other" / "config.yaml")
    split = read_split(here.config.data)
    task = training_questions(str(tmp_path / "other"), here, say)
    left, refused = gated(task, [], split)
    held_out = {one.question for one in split.examples(split.validation)}
    assert asked(task) & held_out and not asked(left) & held_out
    assert len(refused) == len(asked(task) & held_out)


def test_what_the_benchmark_of_clinical_cases_asks_is_refused() -> None:
    theirs, own = generate_cases(1, CASES_SEED, ["kidney_stage"]), generate_cases(20, 5, ["kidney_stage"])
    left, refused = gated(exact_task("cases", [*theirs, *own]), [], None)
    assert [(one.benchmark, one.theirs) for one in refused] == [("clinical_cases", "kidney_stage-1")]
    assert len(left.questions) == 20


def test_questions_of_benchmarks_are_refused_and_each_says_by_which_rule(tmp_path: Path) -> None:
    quiz = written(tmp_path / "quiz.jsonl", [{"id": "q7", "question": f"{STEM} in culture?"}])
    task = training_questions(str(written(tmp_path / "own.jsonl", QUIZ)), answerer(tmp_path), say)
    left, refused = gated(task, benchmark_questions([str(quiz)], [], None), None)
    assert [one.id for one in left.questions] == ["own"]
    assert [(one.id, one.benchmark, one.theirs) for one in refused] == [("theirs", "quiz", "q7")]
    assert refused[0].rule


def test_the_benchmarks_of_a_runs_rows_count_too(tmp_path: Path) -> None:
    quiz = written(tmp_path / "quiz.jsonl", [{"question": f"{STEM} in culture?"}])
    data = answerer(tmp_path, f"data.benchmarks=[{quiz}]").config.data
    assert [one.benchmark for one in benchmark_questions([], [data], None)] == ["quiz"]
    with pytest.raises(ConfigError, match=r"data.benchmarks=.*gone.jsonl: no such file"):
        benchmark_questions([], [replace(data, benchmarks=[str(tmp_path / "gone.jsonl")])], None)
    with pytest.raises(ConfigError, match=r"^benchmarks=.*gone.jsonl: no such file"):
        benchmark_questions([str(tmp_path / "gone.jsonl")], [], None)


def test_the_training_split_of_a_benchmark_is_compared_with_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(path: str, name: str | None, revision: str | None, splits: Sequence[str], setting: str) -> Any:
        stem = STEM if splits == ("test",) else "Which vitamin cures scurvy, of those below"
        texts = [stem, STEM] if splits == ("train",) else [stem]
        options = {"A": "C", "B": "D", "C": "K", "D": "E"}
        for number, text in enumerate(texts, 1):
            yield number, {"question": f"{text}?", "options": options, "answer_idx": "A", "meta_info": "step1"}

    monkeypatch.setattr(questions, "read_hub", rows)
    monkeypatch.setattr(known_benchmarks, "read_hub", rows)
    config = composed("model=tiny", "trainer=cpu", "data=clinical_cases")
    task = training_questions("medqa:train", Answerer(config, None, None, Path("runs/x")), say)
    left, refused = gated(task, benchmark_questions([], [], "medqa:train"), None)
    assert len(task.questions) == 2 and len(left.questions) == 1
    assert [one.benchmark for one in refused] == ["medqa"]


def test_what_an_evaluation_of_the_run_scores_is_refused_whole(tmp_path: Path) -> None:
    own = written(tmp_path / "own.jsonl", QUIZ)
    run = answerer(tmp_path)
    fingerprint = training_questions(str(own), run, say).fingerprint
    (tmp_path / "evaluation" / "verdict_generate" / "run").mkdir(parents=True)
    told = tmp_path / "evaluation" / "verdict_generate" / "run" / "evaluation.json"
    told.write_text(json.dumps({"tasks": {"quiz": fingerprint}}))
    with pytest.raises(ConfigError, match=r"data=.*own.jsonl: the benchmark that .*run scores"):
        training_questions(str(own), run, say)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("medqa", "data=medqa: a benchmark's test split, which medreason.evaluate scores; name training questions"),
        ("pubmedqa:train", "data=pubmedqa:train: the split that medreason.evaluate scores"),
        ("medqa:trian", "data=medqa:trian: no such file or run (did you mean medqa:train?)"),
        ("nothing-here", "data=nothing-here: no such file or run"),
        ("FOLDER/test-00000-of-00001.jsonl", "a test split by its name; name training questions"),
        ("FOLDER/MedQA.jsonl", "called as the benchmark medqa is"),
        ("FOLDER/gone.jsonl", "no such file"),
        ("FOLDER/bad.jsonl", "data=FOLDER/bad.jsonl: row 1: answer 'Z' is not among the options A, B"),
        ("FOLDER/empty.jsonl", "rows that are no question and answer: 1 empty answer"),
    ],
)
def test_what_cannot_be_asked_is_one_line(tmp_path: Path, given: str, said: str) -> None:
    for name in ("test-00000-of-00001", "MedQA"):
        written(tmp_path / f"{name}.jsonl", QUIZ)
    written(tmp_path / "bad.jsonl", [{"question": "Why?", "options": ["a", "b"], "answer": "Z"}])
    written(tmp_path / "empty.jsonl", [{"question": "Why?", "answer": ""}, {"question": "How?", "answer": "So."}])
    with pytest.raises(ConfigError) as refused:
        training_questions(given.replace("FOLDER", str(tmp_path)), answerer(tmp_path), say)
    assert said.replace("FOLDER", str(tmp_path)) in str(refused.value) and "\n" not in str(refused.value)


def test_rows_without_a_rule_that_judges_their_answers_need_other_questions(tmp_path: Path) -> None:
    config = composed("data=local", "data.path=rows.jsonl")
    with pytest.raises(ConfigError, match=r"data must be given: answers to the rows of .* cannot be judged by rule"):
        training_questions(None, Answerer(config, None, tmp_path, tmp_path), say)
    with pytest.raises(ConfigError, match="data must be given: a model alone"):
        training_questions(None, Answerer(config, None, None, tmp_path), say)


def test_a_question_that_comes_twice_is_asked_once() -> None:
    cases = generate_cases(3, 5, ["anaemia"])
    assert len(exact_task("cases", [*cases, *cases]).questions) == 3
    with pytest.raises(ConfigError, match=r"^data=x: no questions"):
        make_task("x", [], Kind.exact, "data")
