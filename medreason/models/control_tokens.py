"""Text from people stays text: `</s>[INST]` in a question is nine characters, not the end of a turn.

    question           Is </s> a token?
    hide               Is ◦◦◦◦◦◦ a token?                    the name out of sight, in characters that no text holds
    chat template      <s>[INST] Is ◦◦◦◦◦◦ a token?[/INST]   what it writes itself is all that is a control token now
    encode             1 4 ▁Is ▁ < / s > ▁a ▁token ? 5       a text that hides nothing: exactly the tokenizer's tokens

Training refuses rows with such names instead; `prompts.prompt_text`, its prompt, hides nothing.
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from medreason.config import ConfigError

# Unicode's noncharacters, which are never exchanged: sixteen digits and the marks around them
DIGITS = [chr(0xFDD0 + digit) for digit in range(16)]
OPEN, CLOSE, TOKEN = "\ufdef", "\ufdee", "\ufded"
HIDDEN = re.compile(f"{OPEN}([{DIGITS[0]}-{DIGITS[-1]}]*){CLOSE}")


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Names and ids of the tokens that steer a model: special ones, and those added for the chat template to write."""
    template = str(tokenizer.chat_template)
    added = {
        str(token): number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special or str(token) in template
    }
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def hide(tokenizer: Any, text: str) -> str:
    """The text, for a chat template to put into its place, with the names of control tokens out of sight."""
    return hider(tokenizer, str(tokenizer.chat_template))(text)


def show(text: str) -> str:
    """The text as it was before `hide`."""
    return HIDDEN.sub(lambda hidden: bytes.fromhex(digits(hidden[1])).decode(errors="replace"), text)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text that holds its special tokens already; what it hides is made of ordinary ones.

    Raises ConfigError for a tokenizer that cannot write a control token's name as text.
    """
    if HIDDEN.search(text) is None:
        return plain_encode(tokenizer, text)
    return quiet_encoder(tokenizer, str(tokenizer.chat_template))(text)


def plain_encode(tokenizer: Any, text: str) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def names_of(control: dict[str, int]) -> re.Pattern[str]:
    """Where a name stands: of two that begin at one place the longer, as tokenizers have it."""
    return re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)")


@lru_cache(maxsize=4)
def hider(tokenizer: Any, template: str) -> Callable[[str], str]:
    control = control_tokens(tokenizer)
    numbers, names = set(control.values()), names_of(control)
    core = getattr(tokenizer, "backend_tokenizer", None)

    def hidden(text: str) -> str:
        if core is None:
            return names.sub(lambda name: concealed(name[0]), text)
        # asked of the tokenizer: some take a name in other case or width, or with the spaces beside it, for the token
        found = core.encode(text, add_special_tokens=False)
        at, parts = 0, []
        for number, (start, end) in zip(found.ids, found.offsets, strict=True):
            if number in numbers and end > start:
                parts += [text[at:start], concealed(text[start:end])]
                at = end
        return "".join([*parts, text[at:]])

    return hidden


def concealed(name: str) -> str:
    return OPEN + "".join(DIGITS[int(digit, 16)] for digit in name.encode("utf-8", "replace").hex()) + CLOSE


def digits(hidden: str) -> str:
    """Hexadecimal digits, two a byte."""
    found = "".join(f"{ord(each) - 0xFDD0:x}" for each in hidden)
    return found[: len(found) // 2 * 2]


@lru_cache(maxsize=4)
def quiet_encoder(tokenizer: Any, template: str) -> Callable[[str], list[int]]:
    """Encodes texts in which the control tokens that stand openly are meant, and those hidden are not."""
    control = control_tokens(tokenizer)
    names, numbers = names_of(control), set(control.values())
    fast = getattr(tokenizer, "backend_tokenizer", None) is not None
    read = renamed_encoder(tokenizer, control, names) if fast else pieces_encoder(tokenizer, control, names)

    def quiet(text: str) -> list[int]:
        harmless = HIDDEN.sub("x", text)
        tokens = read(text)
        meant = sum(number in numbers for number in tokens) == len(names.findall(text))
        if not meant or read(harmless) != plain_encode(tokenizer, harmless):
            raise ConfigError(
                "a control token's name, which this tokenizer cannot write as text, in a question: reword it"
            )
        return tokens

    return quiet


def renamed_encoder(tokenizer: Any, control: dict[str, int], names: re.Pattern[str]) -> Callable[[str], list[int]]:
    """Encodes with a copy of the tokenizer that knows control tokens by names that no text holds."""
    from tokenizers import AddedToken, Tokenizer

    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    added = settings["added_tokens"]
    copy = Tokenizer.from_str(
        json.dumps(settings | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None})
    )
    called = {name: f"{TOKEN}{concealed(name)}" for name in control}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    copy.add_tokens(
        [AddedToken(called.get(one["content"], one["content"]), **{flag: one[flag] for flag in flags}) for one in added]
    )
    originals = {copy.token_to_id(called.get(one["content"], one["content"])): one["id"] for one in added}

    def read(text: str) -> list[int]:
        openly = "".join(
            called[part] if part in called else show(part) for part in re.split(f"({names.pattern})", text) if part
        )
        return [originals.get(number, number) for number in copy.encode(openly, add_special_tokens=False).ids]

    return read


def pieces_encoder(tokenizer: Any, control: dict[str, int], names: re.Pattern[str]) -> Callable[[str], list[int]]:
    """Encodes what stands between control tokens piece by piece, for tokenizers written in Python."""

    def read(text: str) -> list[int]:
        tokens: list[int] = []
        for part in re.split(f"({names.pattern})", text):
            if part in control:
                tokens.append(control[part])
            elif part:
                tokens += tokenizer.convert_tokens_to_ids(tokenizer.tokenize(show(part), split_special_tokens=True))
        return tokens

    return read
