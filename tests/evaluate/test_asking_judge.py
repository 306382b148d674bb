"""A judge that fake_server.py plays reads answers of a model that it plays too; at the end a served model judges."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fake_server import message, serving
from omegaconf import OmegaConf

from medreason.config import ConfigError, EvaluateConfig, RunFailed, typed
from medreason.core.json_lines import read_json_lines
from medreason.evaluate.asking_judge import without_credentials
from medreason.evaluate.run import evaluate
from medreason.inference import server
from support import ROOT, free_port

YES, NO = "It is the same.\nVERDICT: yes", "It is not.\nVERDICT: no"
VITAMINS = [{"id": f"q{i}", "question": f"Which vitamin is number {i}?", "answer": f"Vitamin {i}"} for i in range(8)]
CHESTS = [
    {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "I have chest pain."},
            {"role": "assistant", "content": "Since when?"},
            {"role": "user", "content": f"{hours} hours. What now?"},
        ],
        "prompt_id": f"chest-{hours}",
        "example_tags": ["theme:emergency_referrals" if hours < 2 else "theme:context"],
        "rubrics": [
            {"criterion": "Calls an ambulance", "points": 7, "tags": ["axis:accuracy"]},
            {"criterion": "Asks for more", "points": 3, "tags": ["axis:context"]},
            {"criterion": "Advises to wait", "points": -5, "tags": ["axis:accuracy"]},
        ],
    }
    for hours in range(3)
]


@pytest.fixture
def served() -> Iterator[Callable[..., str]]:
    """Starts servers that answer a request's body by a function; each one's address."""
    with ExitStack() as started:
        yield lambda reply, *models: started.enter_context(serving(reply, models))


def asked_of(body: dict[str, Any]) -> str:
    text: str = body["messages"][-1]["content"]
    return text


def model(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Answers that hold what was asked, so that a judge can tell them apart; nothing to the last vitamin."""
    asked = asked_of(body)
    return message("" if "number 7" in asked else f"My answer to: {asked}", reasoning_content="SECRET")


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(folder: Path, benchmarks: list[Path | str], **more: Any) -> EvaluateConfig:
    usual = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "evaluate.yaml"))
    assert isinstance(usual, dict)
    values = {name: value for name, value in usual.items() if name not in ("defaults", "hydra")}
    own = {"run": "embedded:tiny", "method": "generate", "served_model": "m", "output": str(folder)}
    return typed(EvaluateConfig, values | own | {"benchmarks": list(map(str, benchmarks))} | more)


def judged(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "scores.json").read_text())["scores"][name]["judged"]
    return found


def test_reference_answers_are_judged_without_the_reasoning_and_every_verdict_is_kept(
    served: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies: list[dict[str, Any]] = []

    def judge(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        bodies.append(body)
        return message(YES if "number 1" in asked_of(body) or "number 3" in asked_of(body) else NO)

    path = written(tmp_path / "short.jsonl", VITAMINS)
    address = served(judge, "the-judge")
    evaluate(settings(tmp_path / "out", [path], server=served(model), judge=address, judge_tokens=77))
    found = judged(tmp_path / "out", "short")
    assert (found["questions"], found["scored"], found["mean"]) == (8, 8, 0.25)
    assert found["interval"][0] < 0.25 < found["interval"][1]
    assert (found["no_answer"], found["verdicts"], found["no_verdict"]) == (1, 7, 0)
    assert found["self_agreement"]["share"] == 1 and found["self_agreement"]["kappa"] == 1
    lines = read_json_lines(tmp_path / "out" / "short_judge.jsonl")
    assert Counter((one["verdict"], one["reply"]) for one in lines) == {(True, YES): 4, (False, NO): 10}
    assert all((body["model"], body["temperature"], body["max_tokens"]) == ("the-judge", 0, 77) for body in bodies)
    assert len(bodies) == 14 and not any("SECRET" in asked_of(body) for body in bodies)
    record = json.loads((tmp_path / "out" / "judge.json").read_text())
    assert record["model"] == "the-judge" and "{parts}" in record["prompts"]["reference"] and record["digest"]
    assert record["address"] == address
    assert without_credentials("https://me:hush@host:8/v1?key=hush") == "https://host:8/v1"
    said = capsys.readouterr().out
    assert "25.0% (7.1% to 59.1%)" in said and "agrees with itself" in said


def test_healthbenchs_rows_are_asked_as_chats_and_scored_by_points(served: Callable[..., str], tmp_path: Path) -> None:
    chats: list[Any] = []

    def chatting(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        chats.append(body["messages"])
        return model(body)

    def judge(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked = asked_of(body)
        met = "Calls an ambulance" in asked or ("Advises to wait" in asked and "2 hours" in asked)
        return message(YES if met else NO)

    path = written(tmp_path / "hb.jsonl", CHESTS)
    evaluate(settings(tmp_path / "out", [path], server=served(chatting), judge=served(judge, "j")))
    assert [turn["content"] for turn in chats[0][:2]] == ["Be brief.\n\nI have chest pain.", "Since when?"]
    assert [turn["role"] for turn in chats[0]] == ["user", "assistant", "user"]
    found = judged(tmp_path / "out", "hb")
    assert found["mean"] == pytest.approx((0.7 + 0.7 + 0.2) / 3) and found["verdicts"] == 9
    assert found["interval"][0] < found["mean"] < found["interval"][1]
    assert found["subjects"]["emergency_referrals"]["mean"] == pytest.approx(0.7)
    assert found["tags"]["axis:context"]["mean"] == 0
    ids = {record["id"] for record in read_json_lines(tmp_path / "out" / "hb.jsonl")}
    assert ids == {"chest-0", "chest-1", "chest-2"}


def test_a_reply_that_cannot_be_read_is_asked_for_once_more_and_then_is_no_verdict(
    served: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: Counter[str] = Counter()

    def judge(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        number = asked_of(body).partition("number ")[2][0]
        asked[number] += 1
        again = asked_of(body).endswith("Without it nothing is counted.")
        if number == "0":
            return message("I cannot say.")
        if number == "1":
            return message(YES if again else "Yes!")
        return message(YES, finish_reason="length" if number == "2" else "stop")

    path = written(tmp_path / "short.jsonl", VITAMINS[:4])
    address = served(judge, "j")
    evaluate(settings(tmp_path / "out", [path], server=served(model), judge=address))
    found = judged(tmp_path / "out", "short")
    assert asked == {"0": 4, "1": 4, "2": 4, "3": 2}
    assert (found["verdicts"], found["no_verdict"], found["scored"], found["mean"]) == (4, 2, 2, 1)
    said = capsys.readouterr().out
    assert "2 of 4" in said and "no verdict in 2 of the judge's 4 replies, asked again: the score is of 2" in said
    evaluate(settings(tmp_path / "out", [path], server=served(model), judge=address))
    assert asked["0"] == 4, "what stays without a verdict is not asked for at each start"


def test_judging_that_was_interrupted_goes_on_where_it_stopped(
    served: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BUSY_SECONDS", 0.01)
    sent: list[str] = []
    state = {"answers": 0, "whole": False}

    def judge(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sent.append(asked_of(body))
        if len(sent) == 2:
            return 429, {"error": {"message": "busy"}}
        if len(sent) == 3:
            return 500, {"error": {"message": "for a moment"}}
        if len(sent) > 6 and not state["whole"]:
            return 404, {"error": {"message": "gone"}}
        return message(YES)

    def answering(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        state["answers"] += 1
        return model(body)

    path = written(tmp_path / "short.jsonl", VITAMINS[:6])
    addresses = {"server": served(answering), "judge": served(judge, "j"), "batch": 1}
    with pytest.raises(
        RunFailed, match=r"^judge=http.* model=j: .*gone.*; the same command goes on with what is left$"
    ):
        evaluate(settings(tmp_path / "out", [path], **addresses))
    file = tmp_path / "out" / "short_judge.jsonl"
    first = file.read_bytes()
    assert first.count(b"\n") == 4 and not (tmp_path / "out" / "scores.json").exists()
    file.write_bytes(first + b'{"question": "q5", "verd')  # as a kill would leave it
    state["whole"], before = True, len(sent)
    evaluate(settings(tmp_path / "out", [path], **addresses))
    assert len(sent) - before == 12 - 4 and state["answers"] == 6
    assert file.read_bytes().startswith(first) and judged(tmp_path / "out", "short")["mean"] == 1


def test_verdicts_of_another_judge_are_refused_and_stay_without_one(
    served: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return message(YES)

    path = written(tmp_path / "short.jsonl", VITAMINS[:3])
    first, both = served(judge, "j"), served(judge, "j", "k")
    evaluate(settings(tmp_path / "out", [path], server=served(model), judge=first))
    with pytest.raises(ConfigError, match=r"holds verdicts with model=j, not k; remove its judge.json and"):
        evaluate(settings(tmp_path / "out", [path], server=both, judge=both, judge_model="k"))
    with pytest.raises(ConfigError, match=r"holds verdicts with max_new_tokens=1024, not 9; "):
        evaluate(settings(tmp_path / "out", [path], server=both, judge=both, judge_model="j", judge_tokens=9))
    with pytest.raises(ConfigError, match=r"judge_model must be given: the models at judge=.* are 'j', 'k'$"):
        evaluate(settings(tmp_path / "out", [path], server=both, judge=both))
    with monkeypatch.context() as changed:
        changed.setattr("medreason.evaluate.judging.REMINDER", "please")
        with pytest.raises(ConfigError, match="holds verdicts made with another prompt; "):
            evaluate(settings(tmp_path / "out", [path], server=both, judge=first))
    evaluate(settings(tmp_path / "out", [path], server=both))
    assert judged(tmp_path / "out", "short")["mean"] == 1, "what was judged stays so where no judge is named"


def test_a_judge_that_is_none_or_has_nothing_to_judge_is_one_line_before_any_answer(
    served: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    short = written(tmp_path / "short.jsonl", VITAMINS[:2])
    letters = written(tmp_path / "quiz.jsonl", [{"question": "q", "options": ["a", "b"], "answer": 0}])
    works = served(model, "m")

    def refused(why: str, *benchmarks: Path, **more: Any) -> None:
        with pytest.raises(ConfigError, match=why):
            evaluate(settings(tmp_path / "out", list(benchmarks), **{"server": works, **more}))
        assert not (tmp_path / "out").exists()

    refused(r"^judge=.*: no list of models there \(.*refused", short, judge=f"http://127.0.0.1:{free_port()}/v1")
    refused("^judge: the benchmarks have letters, which need none", letters, judge=works)
    refused("are not listed$", short, judge=served(model))
    twin = written(tmp_path / "short_judge.jsonl", VITAMINS)
    refused("short_judge is where the verdicts on short go; rename its file", short, twin, judge=works)
    monkeypatch.setenv("JUDGE_API_KEY", "wrong")
    refused(r"^judge=.*unauthorized", short, judge=works)
    monkeypatch.setenv("JUDGE_API_KEY", "right")
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    evaluate(settings(tmp_path / "out", [short], server=works, judge=works))


def test_on_clinical_cases_the_judge_is_measured_by_exact_match(
    served: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model answers every other case with its own answer; the judge accepts those and ten more."""
    from medreason.evaluate.builtin import run_task

    task = run_task("clinical_cases", None)
    answers = {question.question: question.answer for question in task.questions}
    known, generous = ({one.question for one in some} for some in (task.questions[::2], task.questions[1:20:2]))

    def answering(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked = asked_of(body)
        return message(answers[asked] if asked in known else "not that")

    def judge(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked = asked_of(body)
        return message(YES if "not that" not in asked or any(question in asked for question in generous) else NO)

    evaluate(settings(tmp_path / "out", ["clinical_cases"], server=served(answering), judge=served(judge, "j")))
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]["clinical_cases"]
    found = scores["judged"]["exact_match"]
    assert scores["accuracy"] == pytest.approx(0.5, abs=0.01) and found["verdicts"] == len(task.questions)
    assert found["share"] == pytest.approx(1 - 10 / len(task.questions))
    assert found["interval"][0] < found["share"] < found["interval"][1]
    assert found["kappa"] == pytest.approx(1 - 20 / len(task.questions), abs=0.01)  # where both sides are halves
    assert scores["judged"]["self_agreement"]["share"] == 1
    assert "judge agrees with exact match" in capsys.readouterr().out


def test_open_answers_without_a_judge_are_kept_and_compared_once_one_judge_has_read_both(
    served: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def judge(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return message(YES if "Better" in asked_of(body) else NO)

    def better(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return message(f"Better: {asked_of(body)}")

    path = written(tmp_path / "short.jsonl", VITAMINS)
    evaluate(settings(tmp_path / "one", [path], server=served(model)))
    assert "judge=URL" in "".join(capsys.readouterr())
    scores = json.loads((tmp_path / "one" / "scores.json").read_text())["scores"]["short"]
    assert "judged" not in scores and "accuracy" not in scores and scores["questions"] == 8
    address = served(judge, "j")
    evaluate(settings(tmp_path / "one", [path], server=served(model), judge=address))
    against = {"against": str(tmp_path / "one")}
    evaluate(settings(tmp_path / "two", [path], server=served(better), judge=address, **against))
    found = json.loads((tmp_path / "two" / "scores.json").read_text())["differences"]["short"]
    assert found["difference"] == 1 and "by the judge it answers 100.0 points more" in found["in_words"]


def test_open_questions_cannot_be_asked_by_likelihood(served: Callable[..., str], tmp_path: Path) -> None:
    path = written(tmp_path / "short.jsonl", VITAMINS)
    with pytest.raises(ConfigError, match="its answers have no letters; set method=generate and judge=URL"):
        evaluate(settings(tmp_path / "out", [path], method="likelihood", served_model=None))
