"""A chat template is a program from outside: whatever it does is a line, before anything slow."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medreason.config import ConfigError
from medreason.inference.target import find_answerer
from medreason.models.chat_template import check_chat_template, rendered
from medreason.models.prompts import MISTRAL_CHAT_TEMPLATE

BAD = {
    "{% for m in messages %}{{ m.content }}": "not a Jinja template: line 1",
    "{{ messages[": "not a Jinja template",
    "": "lacks the question",
    "hello": "lacks the question",
    "{{ messages[7].content.x }}": "the template fails",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "the template fails",
    "{{ raise_exception('roles must\nalternate') }}": "the template fails for a conversation (roles must)",
    "{{ messages.append({}) }}": "the template fails",
    "{% for i in range(10000000) %}x{% endfor %}": "the template fails",
    "{{ 1 // 0 }}": "the template fails",
    "{{ bos_token + 1 }}": "the template fails",
    "{% include 'x' %}": "the template fails",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "the template fails",
}


@pytest.mark.parametrize("template", BAD)
def test_what_a_template_does_wrong_is_one_line(template: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_chat_template(template, "model.chat_template")
    assert str(refused.value).startswith("model.chat_template: ")
    assert BAD[template] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "template",
    [
        MISTRAL_CHAT_TEMPLATE,
        "{% for m in messages %}{% if m.role == 'x' %}{% continue %}{% endif %}{{ m.content | trim }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}",
        "{{ strftime_now('%Y') }}{{ messages | tojson }}",
    ],
)
def test_a_template_in_order_passes(template: str) -> None:
    check_chat_template(template, "model.chat_template")


def adapter(folder: Path, **changes: Any) -> Path:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "embedded:tiny", "r": 4, "lora_alpha": 8,
                "target_modules": ["q_proj"]}  # fmt: skip
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(settings | changes), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": value}
        for value in (
            None,
            3,
            "all-linear",
            {},
            [],
            [None],
            [3],
            [["q_proj"]],
            [{}],
            [""],
            ["\ud800"],
            {"a": ["q_proj"]},
        )
    ]
    + [{"r": value} for value in (None, "x", -1, 0, 10**30, 1.5, [], {}, True, "4x")]
    + [{"lora_alpha": value} for value in (None, "x", -1, [], {}, "1e999", 10**400)]
    + [{"base_model_name_or_path": value} for value in (None, 3, [], {}, "", "\0", "x" * 5000)]
    + [{"revision": value} for value in ([], {}, 3)],
)
def test_an_adapters_settings_of_odd_types_are_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", **change)
    if "revision" in change or change == {"target_modules": ["\ud800"]}:
        find_answerer(str(folder))  # odd, but no harm
        return
    with pytest.raises(ConfigError, match=r"^(run|model\.path)") as refused:
        find_answerer(str(folder))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("template", [b"{% if %}", b"hello", b"\xff\xfe", b"{{ 1 // 0 }}"])
def test_an_adapters_bad_template_is_one_line(template: bytes, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "chat_template.jinja").write_bytes(template)
    with pytest.raises(ConfigError, match=r"chat_template\.jinja: "):
        find_answerer(str(folder))


def test_a_models_own_template_that_fails_in_the_middle_of_a_talk_is_a_line() -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(ConfigError, match="the model's chat template: the template fails"):
        rendered(SimpleNamespace(apply_chat_template=fails), [])
    with pytest.raises(ConfigError, match="writes nothing"):
        rendered(SimpleNamespace(apply_chat_template=lambda *_, **__: " \n"), [])
