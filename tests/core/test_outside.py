"""Text from outside is shown as text: in a terminal, by Rich, in Markdown, in a picture."""

import io
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from rich.console import Console

from medreason.chat import terminal
from medreason.chat.conversation import Conversation, Piece, Turn
from medreason.config import ConfigError, TrainConfig
from medreason.core.cli import refuse
from medreason.core.outside import drawn, literal, markdown, one_line, visible
from medreason.core.progress import say
from medreason.evaluate import display
from medreason.export.model_card import model_card
from medreason.report.run_curves import draw_curves

# a title set, red for the rest of the screen, a beep, a line overwritten, text turned round, half an emoji
ATTACK = "a\x1b]0;owned\x07\x1b[31m\rb\u202ec\x9b2Jd\x00e\ud83df\u2066g\U000e0041h"
SHOWN = r"a\x1b]0;owned\x07\x1b[31m\rb\u202ec\x9b2Jd\x00e\ud83df\u2066g\U000e0041h"
MARKUP = [
    "<img src=http://evil.example/pixel.png>", "![pixel](http://evil.example/pixel.png)", "[click](javascript:x)",
    "a\n\n# Heading\n\n---\nlicense: mit\n", "one | two \\| three", "www.evil.example and me@evil.example",
    "<script>alert(1)</script>", "&lt;b&gt; &#60;", "`code` *bold* _em_ ~~gone~~ $x^2$", "<!-- comment",
    "a `http://b.c` d",
]  # fmt: skip


def test_what_a_terminal_would_obey_is_written_out_and_lines_stay() -> None:
    assert visible(ATTACK) == SHOWN
    assert visible("tab\there\r\nnext\n") == "tab\there\nnext\n"
    assert one_line("one\ntwo\tthree") == r"one\ntwo\tthree"
    assert visible("发热, ñ, \u200dé, عربي, 👩\u200d⚕️") == "发热, ñ, \u200dé, عربي, 👩\u200d⚕️"


def test_progress_and_refusals_stay_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"reading {ATTACK}\nsecond line")
    with pytest.raises(SystemExit):
        refuse("train", ConfigError("data.path=a\x1b[31m\u202eb: no such file"), TrainConfig)
    said = capsys.readouterr()
    assert SHOWN in said.out and said.out.count("\n") == 1
    assert said.err == "medreason.train: data.path=a\\x1b[31m\\u202eb: no such file\n"


def test_a_chat_shows_control_sequences_in_questions_titles_and_answers(capsys: pytest.CaptureFixture[str]) -> None:
    def ask(conversation: Conversation, question: str) -> Any:
        pieces: list[Piece] = [("reasoning", f"why {ATTACK}"), ("answer", f"so {ATTACK}")]
        yield from pieces
        conversation.turns.append(Turn(question, "", "so", "whole"))

    terminal.Terminal(ask, f"title {ATTACK}", False, False).talk(["question", f"/{ATTACK}", f"/save {ATTACK}"])
    said = capsys.readouterr().out
    assert f"title {SHOWN}" in said and f"why {SHOWN}" in said and f"so {SHOWN}" in said
    assert not set(ATTACK) - set("abcdefgh0;owned[31m2J]") & set(said)


def test_square_brackets_of_a_benchmark_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    score = {"questions": 3, "accuracy": 0.5, "interval": [0.1, 0.9], "cut": 0, "subjects": {}}
    pair = {"in_words": "no [/] difference"}
    display.show({"scores": {"[/red]x\x1b": score}, "differences": {"[b]": pair}, "against": "[/]y"})
    said = capsys.readouterr().out
    assert r"[/red]x\x1b" in said and "[b], against [/]y: no [/] difference" in said
    console = Console(file=io.StringIO())
    console.print(literal("[red]a[/] [/b]\x07"))
    assert console.file.getvalue() == "[red]a[/] [/b]\\x07\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", MARKUP)
def test_markdown_renders_as_the_text_alone(text: str) -> None:
    html = (
        MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .render(f"| | |\n| --- | --- |\n| a | {markdown(text)} |\n")
    )
    assert html.count("<tr>") == 2 and html.count("<td>") == 2
    inside = html.partition("<td>a</td>")[2]
    assert not re.findall(r"<(?!/?(?:td|tr|tbody|table|code)>)", inside)
    shown = re.sub(r"<[^>]*>", "", inside).strip()
    for entity, mark in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        shown = shown.replace(entity, mark)
    assert shown == " ".join(text.split())


def test_addresses_stand_in_code_where_no_renderer_makes_links_of_them() -> None:
    assert markdown("see http://evil.example/x?y=1 now") == "see `http://evil.example/x?y=1` now"
    assert markdown("[a](http://evil.example)") == r"\[a\](`http://evil.example`)"
    assert markdown("www.evil.example, me@evil.example") == "`www.evil.example`, `me@evil.example`"


def test_a_card_holds_whatever_its_run_says_as_text() -> None:
    attack = "\n".join(MARKUP) + ATTACK
    score = {"questions": 3, "accuracy": 0.5, "interval": [0.1, 0.9]}
    card = model_card(
        name=attack,
        kind="merged",
        config={"model": {"path": attack, "revision": attack}, "lora": {"target_modules": [attack], "r": attack}},
        record={
            "status": f"failed: {attack}", "device": attack, "commit": attack, "versions": {attack: attack},
            "overrides": [attack], "data": {"source": attack, "left_out": {attack: 3}},
        },
        corpus={"rows": {attack: 3}, "rejects": {attack: {"count": 1}}, "contamination": {"benchmarks": {attack: 1}}},
        tokens=None,
        parity=[(attack, attack)],
        evaluations={attack: {"scores": {attack: score, "odd": "text", "odder": {"accuracy": "x", "interval": 3}}}},
        quantization=attack,
    )  # fmt: skip
    front, body = card.removeprefix("---\n").split("---\n", 1)
    assert set(yaml.safe_load(front)) == {"library_name", "tags"}, "the hub takes no base that is not its own"
    assert not re.search(r"[<\x1b\r\u202e]|(?<!\\)\]\(", body)
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert [line.partition(" ")[0] for line in headings] == ["#"] + ["##"] * 10
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body)
    assert not re.search(r"<(img|a|script|!--|del|s|em)\b", html) and html.count("<h1>") == 1
    body.encode()


@pytest.mark.parametrize("name", ["cost_$x^{2_$_and_$", "病例 发热", "a\\$b\\frac$c$", "x\x1b[31m\n\udc80", "n" * 250])
def test_a_picture_takes_any_name_without_a_word(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = tmp_path / name
        run.mkdir()
        (run / "metrics.csv").write_text("step,train/loss,val/loss\n0,1.0,\n1,0.5,0.7\n")
        draw_curves(run, {})
        score = {"questions": 3, "accuracy": 0.5, "interval": [0.1, 0.9], "subjects": {}}
        subjects = {name: score, "_": score, "other $ one": score}
        scores = {name: score | {"subjects": subjects, "chance": 0.25}}
        evaluated = {"run": name, "model": name, "base": True}
        others = {"evaluated": evaluated | {"base": False}, "scores": scores}
        display.draw({"scores": scores, "evaluated": evaluated, "others": others}, run / "scores.png")
    assert not said, [str(one.message) for one in said]
    assert (run / "scores.png").stat().st_size > 1000


def test_a_dollar_in_a_picture_is_a_dollar() -> None:
    from matplotlib.figure import Figure

    title = Figure().subplots().set_title(drawn("a$b$c \\$"))
    assert title._preprocess_math(title.get_text()) == ("a$b$c \\$", False)
