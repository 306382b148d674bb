"""Chat templates are programs from outside: tried before anything slow; what one does wrong is a line."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from medreason.config import ConfigError

QUESTION = "Which vitamin do sailors lack?"


class Generation(Extension):
    """`{% generation %}`, with which transformers marks a model's own words; here they are text as any other."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_chat_template(template: str, setting: str) -> None:
    """Raises ConfigError for a template that is none, that fails, or that leaves the question out.

    `setting` names it. Tried as transformers runs it, in jinja2's sandbox, but without a tokenizer.
    """

    def refuse(message: str) -> None:
        raise TemplateError(message)

    tokens = {name: f"<{name}>" for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    messages = [{"role": "user", "content": QUESTION}]
    try:
        text = environment.from_string(template).render(messages=messages, add_generation_prompt=True, **tokens)
    except TemplateSyntaxError as error:
        raise ConfigError(f"{setting}: not a Jinja template: line {error.lineno}: {error.message}") from error
    except Exception as error:  # whatever the template does
        raise ConfigError(f"{setting}: {failure(error)}") from error
    if QUESTION not in text:
        raise ConfigError(f"{setting}: what it writes of a conversation lacks the question; see messages in {setting}")


def failure(error: Exception) -> str:
    said = str(error).splitlines()[0] if str(error).strip() else type(error).__name__
    return f"the template fails for a conversation ({said})"


def rendered(tokenizer: Any, turns: Sequence[Mapping[str, str]]) -> str:
    """The conversation as the tokenizer's template writes it. Raises ConfigError where the template cannot."""
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever the template does
        raise ConfigError(f"the model's chat template: {failure(error)}; set model.chat_template") from error
    if not text.strip():
        raise ConfigError("the model's chat template writes nothing of a conversation; set model.chat_template")
    return text
