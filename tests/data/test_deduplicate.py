from pathlib import Path

import numpy as np
import pytest

from medreason.data import deduplicate
from medreason.data.corpus import EXACT, read_corpus
from medreason.data.deduplicate import exact_duplicates
from medreason.models.prompts import Example
from support import data_config, write_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDREASON_CACHE", str(tmp_path / "cache"))


def near_duplicates(questions: list[str], similarity: float) -> dict[int, int]:
    numbers, firsts = deduplicate.near_duplicates(questions, similarity)
    return dict(zip(numbers.tolist(), firsts.tolist(), strict=True))


VIGNETTE = (
    "a 45-year-old homeless man presents to the emergency department unconscious, with a history of severe pain "
    "treated with hydromorphone and fluids on previous admissions; what condition explains his low reticulocytes?"
)


def test_exact_duplicates_have_the_same_question_and_answer_however_written(tmp_path: Path) -> None:
    questions = ["Why?", "why ?", "WHY?", " why? ", "Why?"]
    answers = ["So.", "so.", "SO.", "so.", "Not so."]
    examples = [Example(question, "r", answer) for question, answer in zip(questions, answers, strict=True)]
    write_rows(tmp_path / "rows.jsonl", examples)
    table = read_corpus(data_config(tmp_path / "rows.jsonl")).table
    assert [number for number, repeats in enumerate(table["repeats"].to_pylist()) if repeats == EXACT] == [2, 3]


def test_what_repeats_exactly_leads_to_the_first_and_comes_in_order() -> None:
    keys = np.array([[5, 1], [5, 0], [7, 7], [5, 1], [7, 7], [1, 5], [5, 1]], np.uint64)
    assert [numbers.tolist() for numbers in exact_duplicates(keys)] == [[3, 4, 6], [0, 2, 0]]
    assert [numbers.tolist() for numbers in exact_duplicates(keys[:3])] == [[], []]
    assert [numbers.tolist() for numbers in exact_duplicates(keys[:0])] == [[], []]


def test_near_duplicates_lead_to_the_first_of_their_kind() -> None:
    questions = [
        VIGNETTE,
        "what is the most common cause of urinary leakage in a 65-year-old woman?",
        VIGNETTE.replace("45-year-old", "46-year-old"),
        VIGNETTE.replace("unconscious", "awake").replace("severe", "mild"),
        VIGNETTE + " name it.",
        "why?",
    ]
    assert near_duplicates(questions, 0.8) == {2: 0, 4: 0}
    assert near_duplicates(questions, 0.5) == {2: 0, 3: 0, 4: 0}
    assert near_duplicates(questions, 1.0) == {}


def test_chains_and_short_questions_are_duplicates_too() -> None:
    words = [f"word{n}" for n in range(60)]
    chain = [
        " ".join(words[start : start + 40]) for start in (0, 3, 6)
    ]  # neighbours share 35 of 41 runs, ends 32 of 44
    assert near_duplicates(chain, 0.8) == {1: 0, 2: 0}
    assert near_duplicates([chain[0], chain[2]], 0.8) == {}
    assert near_duplicates(["why?", "why?", "how?"], 0.8) == {1: 0}
    assert near_duplicates([], 0.8) == {}


def test_a_question_that_comes_a_thousand_times_and_others_near_it_are_one_group() -> None:
    questions = [VIGNETTE, VIGNETTE + " name it.", *[VIGNETTE] * 1000, "why?", VIGNETTE + " now.", *["why?"] * 3]
    found = near_duplicates(questions, 0.8)
    assert set(found) == {*range(1, 1002), 1003, *range(1004, 1007)}
    assert {found[number] for number in (1, 5, 1001, 1003)} == {0}
    assert {found[number] for number in range(1004, 1007)} == {1002}


def test_groups_are_the_same_however_few_pairs_are_looked_at_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"word{n}" for n in range(300)]
    questions = [" ".join(words[start : start + 40]) for start in range(0, 250, 2)] * 2
    whole = near_duplicates(questions, 0.8)
    monkeypatch.setattr(deduplicate, "PAIRS_AT_ONCE", 3)
    monkeypatch.setattr(deduplicate, "AT_ONCE", 7)
    assert near_duplicates(questions, 0.8) == whole
    assert list(near_duplicates(questions, 0.8)) == list(whole)
    assert set(whole.values()) == {0}
