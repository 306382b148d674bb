"""What a request may hold, before a model sees it: OpenAI's fields, each in its range.

What is refused here would end in an error of transformers', or have it make memory of any size.
"""

import inspect
import json
from collections.abc import Mapping
from typing import Any

Body = dict[str, Any]

MOST_STOPS, LONGEST_STOP = 16, 256  # each is looked for at every token
MOST_BIASES = 1024
COLDEST = 0.01  # below it a temperature divides logits by so little that they overflow
# of a request's own generation_config; its other settings ask for memory, other models, or files
SAMPLING = {"do_sample", "max_new_tokens", "min_p", "repetition_penalty", "temperature", "top_k", "top_p"}
NUMBERS: dict[str, tuple[float, float]] = {  # name: least, most
    "temperature": (0, 100), "top_p": (1e-6, 1), "min_p": (0, 1), "frequency_penalty": (-0.99, 2),
    "presence_penalty": (-2, 2), "repetition_penalty": (0.01, 100),
}  # fmt: skip
WHOLE_NUMBERS: dict[str, tuple[int, int]] = {
    "max_tokens": (1, 2**63), "max_completion_tokens": (1, 2**63), "max_output_tokens": (1, 2**63),
    "max_new_tokens": (1, 2**63), "seed": (-(2**63), 2**63 - 1), "top_k": (0, 2**31), "n": (1, 1),
}  # fmt: skip


class Refused(Exception):
    """A request that is not answered: HTTP status, what is wrong and what to do, OpenAI's word for it."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})


def checked(path: str, content: bytes, model: str, tokenizer: Any) -> Body:
    """A request's body as it may go to the handler of `path`. Raises Refused."""
    try:
        body = json.loads(content)
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Refused(400, "half a character (a lone surrogate) in the request: send whole ones") from error
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request is not JSON ({str(error)[:100]})") from error
    if not isinstance(body, dict):
        raise Refused(400, "the request is no JSON object")
    check_model(body.setdefault("model", model), model)
    body = {name: value for name, value in body.items() if value is not None}
    check_prompt(path, body)
    check_numbers(body)
    if "stop" in body:
        body["stop"] = checked_stops(body["stop"])
    check_biases(body.get("logit_bias", {}), len(tokenizer))
    check_generation_config(body.get("generation_config"))
    check_template_settings(body.get("chat_template_kwargs", {}), tokenizer)
    if path == "/v1/chat/completions" and "max_completion_tokens" in body:  # its newer name
        body.setdefault("max_tokens", body["max_completion_tokens"])
    if "logit_bias" in body:
        body["logit_bias"] = {token: float(bias) for token, bias in body["logit_bias"].items()}
    if "temperature" in body:
        body["temperature"] = max(body["temperature"], COLDEST) if body["temperature"] else 0
    return body


def check_model(name: Any, served: str) -> None:
    """Raises Refused for any model but the one that is served, whether or not there is such a one."""
    if name != served:
        text = f"the model {str(name)[:100]!r} is not served here; there is {served!r}"
        raise Refused(404, text, "model_not_found")


def check_prompt(path: str, body: Body) -> None:
    """Raises Refused for what is no text: transformers would leave a picture out without a word."""
    if path == "/v1/completions":
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:  # as harnesses send it
            body["prompt"] = prompt = prompt[0]
        if not isinstance(prompt, str):
            raise Refused(400, "prompt must be a text; one a request")
        return
    name = "messages" if path == "/v1/chat/completions" else "input"
    turns = body.get(name)
    if name == "input" and isinstance(turns, str):
        return
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise Refused(400, f"{name} must be a list of turns, such as [{{'role': 'user', 'content': 'Why?'}}]")
    for turn in turns:
        if name == "messages" and not isinstance(turn.get("role"), str):
            raise Refused(400, "each of the messages must have a role: system, user or assistant")
        content = turn.get("content")
        parts = content if isinstance(content, list) else []
        if not isinstance(content, str | list | None) or not all(text_part(part) for part in parts):
            raise Refused(400, "the content of a turn must be text: this model reads nothing else")


def text_part(part: Any) -> bool:
    return isinstance(part, dict) and str(part.get("type")).endswith("text") and isinstance(part.get("text"), str)


def check_numbers(settings: Mapping[str, Any]) -> None:
    """Raises Refused for a number that is none, or out of its range."""
    for name, (least, most) in NUMBERS.items():
        value = settings.get(name, least)
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise Refused(400, f"{name} must be a number from {least:g} to {most:g}, got {str(value)[:50]}")
    for name, (lowest, highest) in WHOLE_NUMBERS.items():
        value = settings.get(name, lowest)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise Refused(400, f"{name} must be a whole number from {lowest} to {highest}, got {str(value)[:50]}")


def checked_stops(stop: Any) -> list[str]:
    """The texts at which an answer ends, none of none. Raises Refused for what is no text."""
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) and 0 < len(one) <= LONGEST_STOP for one in stops):
        raise Refused(400, f"stop must be a text of 1 to {LONGEST_STOP} characters, or a list of such")
    if len(stops) > MOST_STOPS:
        raise Refused(400, f"stop: at most {MOST_STOPS} texts, got {len(stops)}")
    return stops


def check_biases(biases: Any, tokens: int) -> None:
    sound = isinstance(biases, dict) and len(biases) <= MOST_BIASES
    if not sound or not all(key.isdecimal() and int(key) < tokens for key in biases):
        raise Refused(400, f"logit_bias must name at most {MOST_BIASES} of the tokens 0 to {tokens - 1}")
    if not all(isinstance(bias, int | float) and abs(bias) <= 100 for bias in biases.values()):
        raise Refused(400, "logit_bias: each must be a number from -100 to 100")


def check_generation_config(given: Any) -> None:
    if given is None:
        return
    settings = json.loads(given) if isinstance(given, str) else None
    if not isinstance(settings, dict) or not settings.keys() <= SAMPLING:
        raise Refused(400, f"generation_config must be JSON with no more than {', '.join(sorted(SAMPLING))}")
    check_numbers(settings)


def check_template_settings(given: Any, tokenizer: Any) -> None:
    """Raises Refused for what is not the chat template's own, such as another template, or padding to any length."""
    known = inspect.signature(type(tokenizer).apply_chat_template).parameters
    if not isinstance(given, dict) or any(name in known for name in given):
        raise Refused(400, "chat_template_kwargs must be settings of the chat template's own")
