"""The command, from its words to rows that training reads."""

import json
import shlex
from pathlib import Path

import pytest

from medreason.config import SampleConfig
from medreason.core.cli import help_page
from medreason.core.json_lines import read_json_lines
from medreason.core.run_directory import read_json, run_config, write_json
from medreason.core.what_next import after_sampling
from medreason.data.corpus import read_corpus, read_split
from support import TAUGHT, data_config, run_command

QUIET = ["samples=3", "temperature=0.05", "max_new_tokens=64", "batching=static"]


@pytest.fixture(scope="module")
def asked(taught_run: Path) -> Path:
    """Two questions, of which the run knows the first."""
    file = taught_run.parent / "asked.jsonl"
    rows = [{"question": TAUGHT.question, "answer": TAUGHT.answer}, {"question": "What else?", "answer": "Nothing."}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def sampled(taught_run: Path, asked: Path) -> Path:
    said = run_command("sample", f"run={taught_run}", f"data={asked}", *QUIET)
    assert said.returncode == 0, said.stderr[-3000:]
    assert "questions: 2, answered right at least once: 1 (50.0%)" in said.stdout
    folder = taught_run / "sampled"
    assert shlex.split(said.stdout.splitlines()[-1])[-1] == f"data.path={folder / 'rows.jsonl'}"
    return folder


def test_right_answers_become_rows_that_training_reads_as_they_are(sampled: Path) -> None:
    assert [list(row) for row in read_json_lines(sampled / "rows.jsonl")] == [["question", "reasoning", "answer"]]
    corpus = read_corpus(data_config(sampled / "rows.jsonl"))
    assert [corpus.example(0)] == [TAUGHT] and not corpus.report["columns_not_read"]
    counts = read_json(sampled / "sample.json")["counts"]
    assert (counts["questions"], counts["solved"], counts["answers"], counts["rows"]) == (2, 1, 6, 1)


def test_after_a_kill_only_what_was_not_answered_is_asked(sampled: Path, taught_run: Path, asked: Path) -> None:
    answers = sampled / "answers.jsonl"
    before = read_json_lines(answers)
    kept, lost = answers.read_bytes().split(b"\n")[:2]
    answers.write_bytes(kept + b"\n" + lost[:40])
    (sampled / "rows.jsonl").unlink()
    said = run_command("sample", f"run={taught_run}", f"data={asked}", *QUIET)
    assert said.returncode == 0 and "2 questions, 1 to answer 3 times" in said.stdout + said.stderr
    assert read_json_lines(answers)[0] == before[0] and len(read_json_lines(answers)) == 2
    assert len(read_json_lines(sampled / "rows.jsonl")) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["samples=4"], "holds answers with samples=3, not 4; give another output=DIR"),
        (["data=OTHER"], "holds answers with data="),
        (["samples=0"], "samples must be positive, got 0"),
        (["data=medqa"], "data=medqa: a benchmark's test split"),
        (["data=local"], "data=local: no such file or run"),
        (["output=FILE/x"], "is not a folder; give another output"),
        (["benchmarks=SAME"], "all are questions of asked; name others"),
    ],
)
def test_a_mistake_is_one_line(sampled: Path, taught_run: Path, asked: Path, words: list[str], said: str) -> None:
    other = asked.with_name("other.jsonl")
    other.write_text(asked.read_text().replace("What else?", "What then?"))
    put = {"OTHER": str(other), "FILE": str(other), "SAME": str(asked)}
    own = [f"{name}={put.get(value, value)}" for name, _, value in (word.partition("=") for word in words)]
    own = [word.replace("FILE", str(other)) for word in own]
    given = [*QUIET[1:], f"data={asked}", "samples=3"]
    given = [word for word in given if word.partition("=")[0] not in {one.partition("=")[0] for one in own}]
    told = run_command("sample", f"run={taught_run}", *given, *own)
    assert told.returncode == 2 and said in told.stderr.splitlines()[-1], told.stderr
    assert "Traceback" not in told.stderr


def test_a_case_that_the_run_held_out_is_never_asked(taught_run: Path, tmp_path: Path) -> None:
    split = read_split(run_config(taught_run).data)
    rows = [{"question": one.question, "answer": one.answer} for one in split.examples(split.validation[:2])]
    file = tmp_path / "cases.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = run_command("sample", f"run={taught_run}", f"data={file}", *QUIET, f"output={tmp_path / 'out'}")
    assert told.returncode == 2 and f"data={file}: all are questions of held_out" in told.stderr
    assert not (tmp_path / "out").exists()


def test_data_is_a_setting_of_this_command_and_no_group() -> None:
    page = help_page("sample", SampleConfig, ["data", "data=questions.jsonl"], 80)
    assert page.splitlines()[1] == "  data=questions.jsonl"


def test_the_next_command_trains_as_the_run_was_trained_on_other_rows(tmp_path: Path) -> None:
    words = [
        "experiments=quickstart",
        "data=hub",
        "data.cases=9",
        "lora.r=8",
        f"hydra.run.dir={tmp_path}",
        "data.mix=[]",
    ]
    write_json(tmp_path / "run.json", {"overrides": words})
    rows = tmp_path / "sampled" / "rows.jsonl"
    expected = ["experiments=quickstart", "lora.r=8", "data=local", f"data.path={rows}"]
    assert shlex.split(after_sampling(tmp_path, rows, "/a/model"))[3:] == expected
    assert shlex.split(after_sampling(None, rows, "/a/model"))[3:] == ["model.path=/a/model", *expected[2:]]
    assert shlex.split(after_sampling(None, rows, "embedded:smollm2_135m"))[3:] == ["model=smollm2_135m", *expected[2:]]
