import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medreason.config import ConfigError
from medreason.core.progress import describe_corpus
from medreason.data import clinical_cases
from medreason.data.corpus import Split, read_corpus, read_split
from medreason.data.examples import LOOKED_AT
from medreason.models.prompts import Example
from support import composed, data_config, write_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDREASON_CACHE", str(tmp_path_factory.mktemp("cache")))


def made(count: int, start: int = 0) -> list[Example]:
    """Examples whose questions have few words in common."""
    words = [[f"{letter}{(number * 7919 + place) % 10007}" for place, letter in enumerate("abcdefgh")]
             for number in range(start, start + count)]  # fmt: skip
    return [Example(" ".join(parts) + "?", f"because {parts[0]}", f"it is {parts[1]}") for parts in words]


def rows(path: Path, examples: list[Example]) -> Path:
    write_rows(path, examples)
    return path


def questions(split: Split, side: str) -> list[str]:
    return [example.question for example in split.examples(getattr(split, side))]


def test_a_corpus_holds_every_example_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    rows(tmp_path / "rows" / "a.jsonl", made(3))
    rows(tmp_path / "rows" / "b.jsonl", made(2, start=3))
    corpus = read_corpus(data_config(tmp_path / "rows"))
    assert [corpus.example(number) for number in range(len(corpus))] == made(5)
    assert corpus.table["place"].to_pylist() == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.jsonl:1", "b.jsonl:2"]
    assert corpus.report["rows"] == {"a.jsonl": 3, "b.jsonl": 2}
    assert corpus.report["rejects"] == {}


def test_a_table_that_is_read_twice_for_a_late_column_is_in_the_corpus_once(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    rows(tmp_path / "rows" / "a.jsonl", made(3))
    cells = [{"instruction": one.question, "output": one.answer} for one in made(LOOKED_AT + 300, start=3)]
    cells[-2]["cot"] = "late"
    (tmp_path / "rows" / "b.jsonl").write_text("\n".join(map(json.dumps, [{"instruction": ""}, *cells])))
    rows(tmp_path / "rows" / "c.jsonl", made(2, start=5000))
    corpus = read_corpus(data_config(tmp_path / "rows", "on_bad_row=skip"))
    late = [Example(one["instruction"], one.get("cot", ""), one["output"]) for one in cells]
    assert list(Split(corpus, np.arange(len(corpus)), np.arange(0), {}).examples(np.arange(len(corpus)))) == [
        *made(3), *late, *made(2, start=5000),
    ]  # fmt: skip
    assert corpus.report["rows"] == {"a.jsonl": 3, "b.jsonl": LOOKED_AT + 301, "c.jsonl": 2}
    assert corpus.report["rejects"] == {"empty instruction": {"count": 1, "places": ["b.jsonl:1"]}}
    assert corpus.table["place"].to_pylist()[2:4] == ["a.jsonl:3", "b.jsonl:2"]


def test_what_is_not_read_is_reported_and_a_skipped_file_changes_no_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    row = {"Question": "q?", "Complex_CoT": "c", "Response": "a", "notes": "n"}
    for name in ("train.jsonl", "test.jsonl", "._train.jsonl", ".ipynb_checkpoints/train-checkpoint.jsonl"):
        (folder / name).write_text(json.dumps(row) + "\n")
    (tmp_path / "quiz").mkdir()
    for name in ("train.jsonl", "dev.jsonl"):
        (tmp_path / "quiz" / name).write_text(json.dumps({"question": name}) + "\n")
    config = data_config(folder, f"benchmarks=[{tmp_path / 'quiz'}]")
    corpus = read_corpus(config)
    assert corpus.report["rows"] == {"train.jsonl": 1}
    assert corpus.report["columns_not_read"] == {"train.jsonl": ["notes"]}
    assert corpus.report["not_read"] == {
        "._train.jsonl": "hidden",
        ".ipynb_checkpoints/": "hidden",
        "test.jsonl": "the split test",
        f"{tmp_path / 'quiz'}/train.jsonl": "the split train",
    }
    assert corpus.report["contamination"]["benchmarks"] == {"dev": 1}
    lines = describe_corpus(corpus.report, {})
    assert lines[0] == "read train.jsonl (1 rows)"
    assert "test.jsonl (the split test)" in lines[1] and lines[2] == "not read: columns notes of train.jsonl"
    (folder / "README.md").write_text("more")
    again = read_corpus(config)
    assert again.key == corpus.key and again.report["not_read"]["README.md"] == "not a table"


def test_rows_with_a_reason_are_named_on_screen(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", [*made(9), Example("q", "", "a")])
    report = read_corpus(data_config(path, "on_bad_row=skip", "max_bad_share=0.1")).report
    assert "skipped 1 rows: empty Complex_CoT (rows.jsonl:10)" in describe_corpus(report, {})


def test_an_examples_side_depends_on_its_question_and_the_seed_alone(tmp_path: Path) -> None:
    examples = made(2000)
    path = tmp_path / "rows.jsonl"

    def sides(rows_of: list[Example], seed: int) -> tuple[list[str], list[str]]:
        split = read_split(data_config(rows(path, rows_of), "validation_share=0.1", f"seed={seed}"))
        return questions(split, "train"), questions(split, "validation")

    train, held_out = sides(examples, 3)
    assert 150 < len(held_out) < 250
    assert len(train) + len(held_out) == 2000
    reversed_train, reversed_held_out = sides(examples[::-1], 3)
    assert reversed_held_out == held_out
    assert sorted(reversed_train) == sorted(train)
    assert set(sides(examples[:500], 3)[1]) <= set(held_out)
    assert sides(examples, 4)[1] != held_out


def test_the_same_and_nearly_the_same_question_never_stand_on_both_sides(tmp_path: Path) -> None:
    examples = [
        Example(f"{'  ' * (n % 3)}{text.question} {'now ' * (n % 2)}", f"r{n}", f"a{n}")
        for n, text in enumerate(made(60) * 8)
    ]
    split = read_split(data_config(rows(tmp_path / "rows.jsonl", examples), "validation_share=0.3"))
    sides = [{question.split()[0] for question in questions(split, side)} for side in ("train", "validation")]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_duplicates_are_counted_and_dropped_by_policy(tmp_path: Path) -> None:
    first = made(20)
    again = [Example(e.question.upper(), "another way", e.answer) for e in first[:3]]
    near = [Example(e.question + " so", e.reasoning, "else") for e in first[3:5]]
    path = rows(tmp_path / "rows.jsonl", [*first, *again, *near])
    found = {}
    for policy in ("off", "report", "exact", "near"):
        config = data_config(path, f"deduplicate={policy}", "near_duplicate=0.7", "validation_share=0.2")
        split = read_split(config)
        found[policy] = len(split.train) + len(split.validation), split.left_out
        report = split.corpus.report
        assert ("duplicates" in report) == (policy != "off")
    assert found == {
        "off": (25, {}),
        "report": (25, {}),
        "exact": (22, {"exact duplicate": 3}),
        "near": (20, {"exact duplicate": 3, "near duplicate": 2}),
    }
    assert report["duplicates"]["exact_places"][0] == ["rows.jsonl:21", "rows.jsonl:1"]
    assert report["duplicates"]["near_places"] == [["rows.jsonl:24", "rows.jsonl:4"], ["rows.jsonl:25", "rows.jsonl:5"]]


def test_contaminated_examples_are_reported_or_dropped(tmp_path: Path) -> None:
    stem = "possible conversion to choriocarcinoma after hydatidiform mole is denoted by all of these"
    examples = [*made(20), Example(f"Say: {stem}", "r", "a")]
    path = rows(tmp_path / "rows.jsonl", examples)
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"id": "t1", "question": stem, "answer": "A"}) + "\n")
    report = read_split(data_config(path, f"benchmarks=[{test}]", "validation_share=0.2"))
    assert len(report.train) + len(report.validation) == 21
    (match,) = report.corpus.report["contamination"]["matches"]
    assert (match["example"], match["benchmark"], match["id"]) == ("rows.jsonl:21", "test", "t1")
    drop = read_split(data_config(path, f"benchmarks=[{test}]", "decontaminate=drop", "validation_share=0.2"))
    assert drop.left_out == {"shares text with a benchmark": 1}
    assert examples[-1].question not in questions(drop, "train") + questions(drop, "validation")
    # an edited test set is another one
    test.write_text(json.dumps({"id": "t2", "question": "What else?"}) + "\n")
    assert read_corpus(data_config(path, f"benchmarks=[{test}]")).report["contamination"]["matches"] == []


def test_sources_are_mixed_by_weight_and_validation_holds_each_question_once(tmp_path: Path) -> None:
    first, second = rows(tmp_path / "a.jsonl", made(300)), rows(tmp_path / "b.jsonl", made(400, start=300))
    plain = read_split(data_config(first, f"mix=[{{path:{second}}}]", "validation_share=0.2"))
    mixed = read_split(data_config(first, "weight=2.5", f"mix=[{{path:{second},weight:0.25}}]", "validation_share=0.2"))
    assert mixed.validation.tolist() == plain.validation.tolist()
    times = Counter(mixed.train.tolist())
    own = [index for index in plain.train.tolist() if index < 300]
    other = [index for index in plain.train.tolist() if index >= 300]
    assert set(times) <= {*own, *other}
    assert {times[index] for index in own} == {2, 3}
    assert {times[index] for index in other} == {0, 1}
    assert sum(times[index] for index in own) / len(own) == pytest.approx(2.5, abs=0.1)
    assert sum(times[index] for index in other) / len(other) == pytest.approx(0.25, abs=0.1)
    assert mixed.corpus.key == plain.corpus.key, "weights act after the cache"


def test_each_source_of_a_mix_has_columns_of_its_own_and_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = rows(tmp_path / "rows.jsonl", made(3))
    second = tmp_path / "other" / "rows.jsonl"
    second.write_text(json.dumps({"ask": "why?", "reply": "so"}) + "\n" + json.dumps({"ask": "", "reply": "so"}))
    mix = f"mix=[{{path:{second},columns:{{question:ask,answer:reply}}}}]"
    corpus = read_corpus(data_config(first, mix, "on_bad_row=skip", "max_bad_share=0.5"))
    assert corpus.example(3) == Example("why?", "", "so")
    assert corpus.table["place"].to_pylist()[2:] == ["rows.jsonl:3", f"{second}:1"]
    assert corpus.report["rejects"] == {"empty ask": {"count": 1, "places": [f"{second}:2"]}}
    with pytest.raises(ConfigError, match=r"data\.mix=.*gone.jsonl: no such file"):
        read_corpus(data_config(first, "mix=[{path:gone.jsonl}]"))


def test_bad_rows_stop_the_run_or_are_skipped_up_to_a_ceiling_also_from_the_cache(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", [*made(98), Example("q", "", "a"), Example("q", "r", "")])
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"2 of 100 rows .*1 empty Complex_CoT .rows.jsonl:99.*on_bad_row=skip"):
            read_corpus(data_config(path))
        with pytest.raises(ConfigError, match=r"more than data\.max_bad_share=0\.01"):
            read_corpus(data_config(path, "on_bad_row=skip"))
    assert len(read_corpus(data_config(path, "on_bad_row=skip", "max_bad_share=0.02"))) == 98


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", [Example("q", "r", "")])
    with pytest.raises(ConfigError, match="no row that can be learned from"):
        read_corpus(data_config(path, "on_bad_row=skip", "max_bad_share=1"))
    rows(path, made(3))
    with pytest.raises(ConfigError, match="no row of 3 falls into the validation split"):
        read_split(data_config(path, "validation_share=0.001"))


def test_the_fingerprint_names_what_is_learned_and_held_out(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", made(50))
    config = data_config(path, "validation_share=0.2")
    fingerprint = read_split(config).fingerprint
    assert read_split(config).fingerprint == fingerprint
    assert read_split(data_config(path, "validation_share=0.2", "seed=1")).fingerprint != fingerprint
    changed = made(50)
    changed[7] = Example(changed[7].question, changed[7].reasoning + ".", changed[7].answer)
    rows(path, changed)
    assert read_split(config).fingerprint != fingerprint


def test_a_changed_file_column_or_format_is_another_corpus_and_a_changed_policy_is_not(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", made(30))
    key = read_corpus(data_config(path)).key
    assert read_corpus(data_config(path, "seed=9", "deduplicate=exact", "row_tokens=64", "weight=3")).key == key
    assert read_corpus(data_config(path, "format=huatuo")).key != key
    assert read_corpus(data_config(path, "columns.answer=Complex_CoT")).key != key
    rows(path, made(31))
    assert read_corpus(data_config(path)).key != key


def test_more_cases_than_a_kind_holds_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    always = Example("the only question?", "r", "a")
    monkeypatch.setitem(clinical_cases.KINDS, "kidney_stage", lambda rng: always)
    config: Any = composed("data=clinical_cases", "data.cases=5", "data.case_kinds=[kidney_stage]").data
    with pytest.raises(ConfigError, match=r"data\.cases=5: only 1 distinct cases could be made"):
        read_split(config)


def test_a_system_text_that_all_rows_share_does_not_make_their_questions_alike(
    tmp_path: Path,
) -> None:
    path, test = tmp_path / "rows.jsonl", tmp_path / "quiz.jsonl"
    system = "You are a careful physician who answers every question of a colleague briefly and with all due care."
    asked = [f"Which vitamin prevents disease {example.question.split()[0]}?" for example in made(40)]
    path.write_text("\n".join(json.dumps({"system": system, "instruction": "Answer.", "input": question, "output": "a"})
                              for question in asked))  # fmt: skip
    test.write_text(json.dumps({"question": asked[3]}) + "\n")
    split = read_split(data_config(path, "validation_share=0.4", f"benchmarks=[{test}]"))
    assert split.corpus.example(3) == Example(f"{system}\n\nAnswer.\n\n{asked[3]}", "", "a")
    assert split.corpus.report["duplicates"]["near"] == 0
    assert [match["example"] for match in split.corpus.report["contamination"]["matches"]] == ["rows.jsonl:4"]
    assert len(split.validation) > 8 and len(split.train) > 15


def test_the_same_question_of_two_contexts_is_not_the_same(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    cells = [{"context": f"{context.question} {context.answer}", "question": question, "answer": "yes"}
             for context in made(20) for question in ("Is it benign?", "Is it common?")]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, cells)))
    report = read_split(data_config(path, "validation_share=0.4")).corpus.report
    assert report["duplicates"]["exact"] == 0
