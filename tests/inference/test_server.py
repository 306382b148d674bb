"""Answers of a server that fake_server.py plays; tests/test_serve.py asks a real one."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fake_server import Reply, message, serving

from medreason.config import ConfigError, Format, RunFailed
from medreason.inference import server
from medreason.inference.batched import Written
from medreason.inference.server import write_remotely
from medreason.models.checks import check_server
from medreason.models.prompts import parse_answer
from support import free_port


@pytest.fixture
def served() -> Iterator[Callable[[Reply], str]]:
    """Starts servers that answer a request's body by a function; each one's address."""
    with ExitStack() as started:
        yield lambda reply: started.enter_context(serving(reply))


def ask(server: str, *questions: str, **settings: Any) -> dict[int, Written]:
    given: dict[str, Any] = {"max_new_tokens": 20, "at_once": 2, **settings}
    return dict(write_remotely(server, "m", questions, Format.think, **given))


def test_reasoning_is_put_back_before_its_answer_whatever_its_field_is_called(served: Callable[[Reply], str]) -> None:
    replies = {
        "transformers": message("Anaemia.", reasoning_content="Low."),
        "vllm": message("Anaemia.", reasoning="Low."),
        "left in": message("<think>\nLow.\n</think>\n\nAnaemia."),
        "none": message("Anaemia."),
        "cut": message("", finish_reason="length", reasoning_content="Low, so"),
    }
    found = ask(served(lambda body: replies[body["messages"][0]["content"]]), *replies)
    texts = {name: (found[place].text, found[place].cut) for place, name in enumerate(replies)}
    whole = "<think>\nLow.\n</think>\n\nAnaemia."
    assert texts["transformers"] == texts["vllm"] == texts["left in"] == (whole, False)
    assert texts["none"] == ("Anaemia.", False)
    cut = parse_answer(texts["cut"][0], Format.think)
    assert (cut.reasoning, cut.answer, texts["cut"][1]) == ("Low, so", "", True)


def test_a_single_answer_is_greedy_and_samples_are_drawn_apart(served: Callable[[Reply], str]) -> None:
    bodies: list[dict[str, Any]] = []

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        bodies.append(body)
        return message("A")

    server = served(reply)
    ask(server, "one")
    assert bodies == [{"messages": [{"role": "user", "content": "one"}], "model": "m", "max_tokens": 20,
                       "temperature": 0.0}]  # fmt: skip
    ask(server, "one", "one", temperature=0.7, seed=5)
    assert {body["seed"] for body in bodies[1:]} == {5, 6}


def test_whoever_stops_listening_does_not_wait_for_the_rest(served: Callable[[Reply], str]) -> None:
    release = threading.Event()

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["messages"][0]["content"] == "slow":
            release.wait(60)
        return message("A")

    found = write_remotely(served(reply), "m", ["quick", "slow"], Format.think, max_new_tokens=20, at_once=2)
    assert next(found)[0] == 0
    began = time.monotonic()
    found.close()  # type: ignore[attr-defined]
    release.set()
    assert time.monotonic() - began < 15


def test_what_came_before_a_refusal_is_kept(served: Callable[[Reply], str]) -> None:
    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["messages"][0]["content"] == "bad":
            return 404, {"error": {"message": "no model\nof this name"}}
        return message("A")

    found = write_remotely(served(reply), "m", ["good", "bad"], Format.think, max_new_tokens=20, at_once=1)
    assert next(found) == (0, Written("A", cut=False))
    with pytest.raises(RunFailed, match=r"model=m: .*404.* no model.*; the same command goes on with what is left$"):
        next(found)


def test_a_busy_server_is_asked_again_until_it_has_a_place(
    served: Callable[[Reply], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BUSY_SECONDS", 0.01)
    asked: list[str] = []

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.append(body["messages"][0]["content"])
        return message("A") if len(asked) > 5 else (429, {"error": {"message": "busy"}})

    assert ask(served(reply), "one", at_once=1) == {0: Written("A", cut=False)}
    assert asked == ["one"] * 6


def test_a_server_that_is_none_is_refused_in_one_line(
    served: Callable[[Reply], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = served(lambda body: message("A"))
    check_server(server)
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    check_server(server)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(ConfigError, match=r"no list of models there .*unauthorized"):
        check_server(server)
    for address, why in ((f"http://127.0.0.1:{free_port()}/v1", "connection refused"), ("nowhere", "unknown url type")):
        with pytest.raises(ConfigError, match=rf"^server={address}: no list of models there \(.*{why}"):
            check_server(address)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (413, "prompt too long"),
        (400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"),
        (400, "the request exceeds the available context size, try increasing it"),
    ],
)
def test_a_question_that_a_server_finds_too_long_is_told_apart_and_the_others_are_asked(
    served: Callable[[Reply], str], status: int, said: str
) -> None:
    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return (status, {"error": {"message": said}}) if body["messages"][0]["content"] == "long" else message("Yes.")

    found = ask(served(reply), "a", "long", "b")
    assert [found[place].too_long for place in range(3)] == [False, True, False]
    assert found[2].text == "Yes."
