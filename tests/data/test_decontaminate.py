import json
import random
from pathlib import Path

import pytest

from medreason.config import ConfigError
from medreason.core.json_lines import read_json_lines
from medreason.data.decontaminate import Question, SharedRuns, find_matches, read_questions
from medreason.data.normalize import normal, words
from medreason.models.prompts import Example
from support import SHARED

STEM = (
    "a patient taking drugs for rheumatoid arthritis with cataract surgery one year back presents with sudden "
    "painless loss of vision; what is the probable diagnosis?"
)
FILLER = "the kidneys regulate acid and base by excreting hydrogen ions and by making bicarbonate anew"


def rule(example: Example, *questions: str) -> list[tuple[str, bool]]:
    asked = [Question("test", str(number), text) for number, text in enumerate(questions)]
    others = [Example(f"{FILLER} {number}?", FILLER, FILLER) for number in range(3)]
    found = find_matches([*others, example], asked)
    assert all(match.example == 3 for match in found)
    return [(match.rule, match.boilerplate) for match in found]


def shared_runs(text: str, question: str, length: int) -> list[tuple[int, int]]:
    runs = SharedRuns([question], length)
    runs.look(0, text)
    return [found[:2] for found in runs.pairs()]


def test_64_shared_characters_are_found_and_63_are_not() -> None:
    run = STEM[10:74]
    assert len(run) == 64
    noise = "".join(random.Random(0).choices("bcdfghjklmnpqrstvwxz", k=300))
    for start in range(70):  # wherever it begins in the text
        text = noise[:start] + run + noise[start:]
        assert shared_runs(text, STEM, 64) == [(0, 0)], start
        assert shared_runs(text.replace(run, run[:63]), STEM, 64) == []


@pytest.mark.parametrize("part", ["question", "reasoning", "answer"])
def test_shared_text_is_found_in_every_part_of_an_example(part: str) -> None:
    parts = {"question": "q", "reasoning": "r", "answer": "a"} | {part: f"Note: {STEM[:70].upper()}\n and so on"}
    assert rule(Example(**parts), STEM) == [("64 characters", False)]


def test_13_shared_words_are_found_however_punctuated() -> None:
    shared = " - ".join(words(STEM)[4:17])
    assert rule(Example(shared, "r", "a"), STEM) == [("13 words", False)]
    assert rule(Example("q", " - ".join(words(STEM)[4:16]), "a"), STEM) == []


def test_a_short_question_is_found_when_it_is_the_same() -> None:
    assert rule(Example("What is  a TRACHEOSTOMY", "r", "a"), "What is a tracheostomy?") == [("same question", False)]
    assert rule(Example("Why?", "What is a tracheostomy?", "a"), "What is a tracheostomy?") == []


def test_a_question_in_other_words_is_found_by_its_rare_ones() -> None:
    asked = (
        "Possible conversion to choriocarcinoma after hydatidiform mole is denoted by all of the following, except:-"
    )
    ours = "What finding is not associated with the possible conversion of a hydatidiform mole into choriocarcinoma?"
    # what is rare shows only against what is common
    findings = ("heart", "liver", "bone", "skin", "eye", "lung")
    common = [
        f"What finding in the {one}, denoted by all of the following except one, is not associated with a possible "
        f"change into {other} disease after treatment?"
        for one in findings
        for other in findings
    ]
    assert rule(Example(ours, "r", "a"), asked, *common) == [("reworded", False)]
    assert rule(Example(common[0].replace("except", "now"), "r", "a"), asked) == []


def test_what_many_questions_share_is_marked_as_boilerplate() -> None:
    stock = "Which of the following is the most appropriate next step in the management of this patient?"
    questions = [f"{chr(97 + n) * 20} was found. {stock}" for n in range(4)]
    assert rule(Example(f"On the ward. {stock}", "r", "a"), *questions) == [("13 words", True)] * 4
    assert rule(Example(f"On the ward. {stock}", "r", "a"), *questions[:3]) == [("13 words", False)] * 3


def test_every_question_that_shares_a_run_is_named() -> None:
    matches = find_matches([Example(STEM, "r", "a")], [Question("t", "1", STEM), Question("t", "2", f"Again: {STEM}")])
    assert [(match.id, match.rule) for match in matches] == [("1", "same question"), ("2", "13 words")]


def test_questions_are_read_with_their_ids_from_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "q1", "id": "x"}) + "\n" + json.dumps({"other": 1}))
    (tmp_path / "b.csv").write_text("question\nq2\n")
    assert read_questions(str(tmp_path)) == [Question("a", "x", "q1"), Question("b", "1", "q2")]
    (tmp_path / "c.jsonl").write_text('{"stem": "q"}')
    with pytest.raises(ConfigError, match=r"data.benchmarks=.*c.jsonl: no row has a `question`"):
        read_questions(str(tmp_path / "c.jsonl"))


def test_text_is_compared_without_case_form_and_spacing() -> None:
    assert normal("  \uff26ull\u00a0WIDTH\n\t\ufb01ne ") == "full width fine"
    assert words("pH 7.2, 中文 β-blocker") == ("pH", "7", "2", "中", "文", "β", "blocker")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared rows are not here")
def test_the_three_known_medmcqa_questions_are_found_in_the_real_rows() -> None:
    rows = read_json_lines(SHARED / "medical_o1_en.jsonl")
    examples = [Example(row["Question"], row["Complex_CoT"], row["Response"]) for row in rows]
    questions = [
        question
        for name in ("mcq_medmcqa_dev_1000", "mcq_mmlu_medical_test", "mcq_pubmedqa_nontest")
        for question in read_questions(str(SHARED / f"{name}.jsonl"))
    ]
    matches = find_matches(examples, questions)
    reworded = {match.id: match.example + 1 for match in matches if match.rule == "reworded"}
    known = {"medmcqa-dev-700": 194, "medmcqa-dev-3946": 152, "medmcqa-dev-4042": 155}
    # the fourth is not among the known ones and is the same question too
    assert reworded == known | {"medmcqa-dev-3584": 83}
    # by the authors' rule: 8 rows, most by phrases that many questions hold
    assert len({match.example for match in matches if match.rule != "reworded"}) == 8
