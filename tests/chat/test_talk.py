"""A chat with a tiny run that knows one answer: in the terminal and on the page."""

import json
import re
import socket
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from medreason.chat.conversation import NOTICE, Conversation, Piece, Turn
from medreason.chat.talk import Speaker, check_chat, load_speaker
from medreason.chat.terminal import Terminal
from medreason.config import ChatConfig, ConfigError
from medreason.inference.batched import Written, generate_answers
from medreason.inference.streaming import AnswerStream
from medreason.models.prompts import prompt_text
from support import TAUGHT, free_port, run_command


def settings(run: Path, **changes: Any) -> ChatConfig:
    given = {"base": False, "checkpoint": None, "precision": None, "page": False, "host": "127.0.0.1", "port": 7860}
    return ChatConfig(**{"run": str(run), **given, "max_new_tokens": 80, "temperature": 0.0, **changes})


@pytest.fixture(scope="module")
def speaker(taught_run: Path) -> Speaker:
    config = settings(taught_run)
    return load_speaker(config, check_chat(config))


def test_a_run_is_asked_and_answers_with_its_reasoning_apart(speaker: Speaker) -> None:
    talk = Conversation()
    pieces = list(speaker.ask(talk, TAUGHT.question))
    assert "".join(text for kind, text in pieces if kind == "reasoning") == TAUGHT.reasoning
    assert "".join(text for kind, text in pieces if kind == "answer") == TAUGHT.answer
    assert talk.turns == [Turn(TAUGHT.question, TAUGHT.reasoning, TAUGHT.answer, "whole")]


# what it writes to a question that it was not taught, and when it ends, differs from processor to processor
@pytest.mark.parametrize(
    ("question", "limit", "cut"),
    [("Another question?", 12, None), (TAUGHT.question, 5, True), (TAUGHT.question, 80, False)],
)
def test_a_streamed_answer_is_the_one_of_evaluation(
    speaker: Speaker, question: str, limit: int, cut: bool | None
) -> None:
    prompt = prompt_text(speaker.tokenizer, question, speaker.style)
    tokens = speaker.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    stream = AnswerStream(speaker.model, speaker.tokenizer, tokens, max_new_tokens=limit, temperature=0.0)
    streamed = "".join(stream)
    whole = generate_answers(
        speaker.model, speaker.tokenizer, [question], speaker.style, max_new_tokens=limit, batch_size=1
    )
    speaker.model.for_inference()
    assert stream.text == streamed and [Written(streamed.strip(), cut=stream.cut)] == whole
    assert cut is None or stream.cut is cut


def test_a_temperature_draws_answers_by_chance(speaker: Speaker) -> None:
    import torch

    def drawn(seed: int) -> str:
        torch.manual_seed(seed)
        return "".join(AnswerStream(speaker.model, speaker.tokenizer, [1, 4], max_new_tokens=20, temperature=5.0))

    assert drawn(1) == drawn(1) != drawn(2)


def test_an_answer_that_is_left_ends_and_stays_as_far_as_it_came(speaker: Speaker) -> None:
    talk = Conversation()
    pieces = speaker.ask(talk, TAUGHT.question)
    assert next(pieces)[0] == "reasoning"
    pieces.close()
    assert talk.turns[0].ending == "stopped" and talk.turns[0].answer == ""
    assert TAUGHT.reasoning.startswith(talk.turns[0].reasoning) and talk.turns[0].reasoning
    assert talk.told() == []


def test_what_goes_wrong_while_writing_is_raised_where_it_is_read(speaker: Speaker) -> None:
    stream = AnswerStream(speaker.model, speaker.tokenizer, [10**6], max_new_tokens=4, temperature=0.0)
    with pytest.raises(IndexError):
        list(stream)


def test_a_question_that_does_not_fit_is_refused_before_the_model_is_asked(speaker: Speaker) -> None:
    talk = Conversation()
    with pytest.raises(ConfigError, match=r"too long: the model reads 4,096, of which 80 are for the answer"):
        speaker.ask(talk, "pH? " * 1100)
    assert talk.turns == []


def test_the_base_does_not_know_what_the_run_has_learned(taught_run: Path) -> None:
    config = settings(taught_run, base=True, max_new_tokens=8)
    talk = Conversation()
    list(load_speaker(config, check_chat(config)).ask(talk, TAUGHT.question))
    assert talk.turns[0].answer and TAUGHT.answer not in talk.turns[0].answer


def replies(*texts: str, stops: bool = False) -> Callable[[Conversation, str], Generator[Piece]]:
    """A model that writes this reasoning and answer, until somebody presses Ctrl-C where it `stops`."""

    def ask(conversation: Conversation, question: str) -> Generator[Piece]:
        reasoning, answer = texts
        conversation.turns.append(Turn(question, reasoning, answer, "stopped" if stops else "whole"))
        for word in reasoning.split(" "):
            yield "reasoning", word + " "
        if stops:
            raise KeyboardInterrupt
        yield "answer", answer

    return ask


def talked(capsys: pytest.CaptureFixture[str], *lines: str, **changes: Any) -> str:
    terminal = {"ask": replies("low\nso low", "Acidaemia."), "title": "run", "alone": False, "colour": False} | changes
    Terminal(**terminal).talk(lines)
    return capsys.readouterr().out


def test_reasoning_stands_apart_and_the_notice_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    said = talked(capsys, "Why?")
    assert said.index(NOTICE) < said.index("│ low\n│ so low \n\nAcidaemia.\n")
    assert "\x1b" not in said and "stands alone" not in said
    assert "\x1b[2m│ low\n│ so \x1b[0m" in talked(capsys, "Why?", colour=True)


def test_folded_reasoning_is_a_line_until_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    said = talked(capsys, "/fold", "Why?", "/show", "/fold")
    assert "(reasoning: 3 words; /show prints it)\nAcidaemia.\n" in said
    assert said.count("so low") == 1 and said.index("/show prints it") < said.index("│ low\n│ so low")
    assert said.endswith("reasoning is shown whole\n\n")


def test_a_stopped_answer_does_not_end_the_chat(capsys: pytest.CaptureFixture[str]) -> None:
    said = talked(capsys, "Why?", "/show", ask=replies("low", "", stops=True))
    assert "│ low \n(stopped)\n" in said and said.endswith("│ low\n\n")


def test_a_new_conversation_has_forgotten_the_old_one(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[int] = []

    def ask(conversation: Conversation, question: str) -> Generator[Piece]:
        told.append(len(conversation.turns))
        return replies("low", "Acidaemia.")(conversation, question)

    talked(capsys, "Why?", "And?", "/reset", "Why?", "/quit", "never", ask=ask)
    assert told == [0, 1, 0]


def test_turns_that_no_longer_fit_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    def ask(conversation: Conversation, question: str) -> Generator[Piece]:
        conversation.dropped = min(len(conversation.turns), 2)
        return replies("low", "Acidaemia.")(conversation, question)

    said = talked(capsys, "1?", "2?", "3?", "4?", ask=ask)
    assert said.count("the model no longer sees") == 2
    assert "no longer sees the oldest turn)" in said and "no longer sees the oldest 2 turns)" in said


def test_too_little_memory_for_an_answer_does_not_end_the_chat(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    def ask(conversation: Conversation, question: str) -> Generator[Piece]:
        conversation.turns.append(Turn(question, "low", "", "stopped"))
        yield "reasoning", "low"
        raise torch.OutOfMemoryError if question == "Why?" else RuntimeError("a defect")

    assert "│ low\n(out of memory: /reset, or" in talked(capsys, "Why?", ask=ask)
    with pytest.raises(RuntimeError, match="a defect"):
        talked(capsys, "Other?", ask=ask)


def test_a_refused_question_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def ask(conversation: Conversation, question: str) -> Generator[Piece]:
        raise ConfigError("too long")

    assert "(too long)\n" in talked(capsys, "Why?", ask=ask)


def test_a_conversation_is_saved_to_new_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, lines = tmp_path / "talk.md", tmp_path / "talk.jsonl"
    orders = [
        "/save",
        "/save talk.txt",
        f"/save {page}",
        f"/save {page}",
        f"/save {lines}",
        f"/save {tmp_path}/no/t.md",
        "/save ~nobody-of-that-name/t.md",
    ]
    said = talked(capsys, "Why?", *orders).splitlines()
    assert said.count("/save FILE: the name must end in .md or .jsonl") == 2
    assert said.count(f"saved: {page}") == 1 and f"{page} exists already; name another file" in said
    assert f"{tmp_path}/no/t.md: No such file or directory" in said
    assert "~nobody-of-that-name/t.md: Could not determine home directory." in said
    assert NOTICE in page.read_text() and json.loads(lines.read_text())["answer"] == "Acidaemia."


def test_a_format_without_turns_says_once_that_questions_stand_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert talked(capsys, "Why?", "And?", alone=True).count("each question stands alone") == 1


def test_an_unknown_command_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    said = talked(capsys, "/sve x", "/help")
    assert "no command /sve; there are:\n/fold" in said and said.count("/save FILE") == 2


def test_piped_questions_are_answered_without_colour_or_terminal(taught_run: Path) -> None:
    questions = f"{TAUGHT.question}\n\n/fold\n{TAUGHT.question}\n"
    said = run_command("chat", f"run={taught_run}", "max_new_tokens=80", input=questions)
    assert said.returncode == 0, said.stderr[-3000:]
    apart = TAUGHT.reasoning.replace("\n", "\n│ ")
    assert f"> {TAUGHT.question}\n│ {apart}\n\n{TAUGHT.answer}\n" in said.stdout
    assert NOTICE in said.stdout and "\x1b" not in said.stdout


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_mistake_is_one_line_before_anything_is_loaded(taught_run: Path, tmp_path: Path, taken_port: int) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text((taught_run / "config.yaml").read_text())
    for given, telling in (
        ([], "run must be given: run=VALUE"),
        (["run=nowhere"], "run=nowhere: no run directory, adapter or model there"),
        ([f"run={unfinished}"], "no adapter/ in it: it has not finished; base=true takes the model before it"),
        ([f"run={taught_run}", "page=true", f"port={taken_port}"], f"port={taken_port}: address already in use; give"),
        ([f"run={taught_run}", "port=70000"], "port must be in 1 to 65535, got 70000"),
        ([f"run={taught_run}", "temprature=1"], "temprature: no such setting (did you mean temperature?)"),
    ):
        said = run_command("chat", *given)
        assert said.returncode == 2 and said.stdout == "", said.stdout
        assert said.stderr.count("\n") == 1 and telling in said.stderr, said.stderr


def test_the_page_without_its_extra_says_what_to_install(taught_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medreason.models.checks.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"no gradio here; pip install 'medreason\[chat\]'"):
        check_chat(settings(taught_run, page=True))


def test_the_page_streams_an_answer_with_its_reasoning_folded(speaker: Speaker) -> None:
    from gradio_client import Client

    from medreason.chat.page import Page, blocks

    made = blocks(Page(speaker.ask, "run", [TAUGHT.question], False, 0.0, speaker.has_base))
    _, url, _ = made.launch(prevent_thread_lock=True, quiet=True, server_port=free_port())
    try:
        client = Client(url, verbose=False)
        job = client.submit(TAUGHT.question, 0.0, True, api_name="/chat")
        *_, ((reasoning, answer, untrained), speed) = job.result(timeout=60), job.outputs()[-1]
        first = job.outputs()[0][0]
    finally:
        made.close()
    assert untrained["metadata"]["title"] == "The model before training"
    assert TAUGHT.answer not in untrained["content"], "the base was never taught it"
    assert re.fullmatch(r"[\d.,]+ tokens per second; before training [\d.,]+ tokens per second", speed)
    assert first[0]["metadata"]["status"] == "pending", "open while it is written"
    assert reasoning["metadata"]["status"] == "done" and reasoning["metadata"]["title"] == "Reasoning, 8 words"
    assert reasoning["content"] == TAUGHT.reasoning and answer["content"] == TAUGHT.answer


def test_the_page_tells_the_model_earlier_answers_without_their_reasoning() -> None:
    from medreason.chat.page import turns_of

    history = [
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "low"}], "metadata": {"title": "Reasoning, 1 word"}},
        {"role": "assistant", "content": [{"type": "text", "text": "Acidaemia."}], "metadata": None},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "low", "metadata": {"title": "Reasoning, 1 word"}},
    ]
    assert Conversation(turns_of(history)).told() == [("Why?", "Acidaemia.")]


def test_what_a_model_writes_fetches_nothing_on_the_page_and_is_told_to_it_as_it_wrote_it() -> None:
    from medreason.chat.page import said, turns_of

    answer = "See ![x](http://a.example/p.png) and <img src=http://a.example/q.png>, pH < 7.35"
    shown = said(answer, answer, thinking=False)
    for message in shown:
        assert "![" not in message.content and "<img" not in message.content
    history = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": shown[1].content}]
    assert Conversation(turns_of(history)).told() == [("Why?", answer)]


def test_the_page_says_in_its_first_words_what_it_is_not() -> None:
    from medreason.chat.page import Page, blocks

    shown = str(blocks(Page(replies("", ""), "run", ["Why?"], True, 0.0, False)).get_config_file())
    assert "not a medical device and no substitute for a clinician" in shown
    assert "Each question stands alone." in shown
