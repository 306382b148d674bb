"""Where an Optuna study is kept: a URL, whose password stands in the environment alone.

    given    postgresql://user:secret@host/db      MEDREASON_STORAGE, or hydra.sweeper.storage
    written  postgresql://user@host/db             trial.json, Hydra's records, messages

A process is told the written form and finds the password in MEDREASON_STORAGE, which those it starts inherit.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode

VARIABLE = "MEDREASON_STORAGE"
SETTING = "hydra.sweeper.storage"
USERINFO = re.compile(r"([\w+.-]+://[^\s:/@]*):(.*)@")  # to the last @: a password may hold one that nobody escaped
SECRET = re.compile("pass|pwd|token|secret", re.IGNORECASE)  # names of a query's secrets


def public(url: str) -> str:
    """The URL without its password, and without a query's secrets."""
    address, mark, query = USERINFO.sub(r"\1@", url).partition("?")
    if not mark or not SECRET.search(query):
        return address + mark + query
    kept = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if not SECRET.search(name)]
    return address + (f"?{urlencode(kept)}" if kept else "")


def secrets(url: str) -> list[str]:
    """What `public` leaves out, as it is written and as it is meant."""
    userinfo = USERINFO.match(url)
    found = [userinfo[2]] if userinfo else []
    found += [pair.partition("=")[2] for pair in url.partition("?")[2].split("&") if SECRET.search(pair)]
    return sorted({form for one in found for form in (one, unquote(one)) if form}, key=len, reverse=True)


def keep(url: str) -> str:
    """The URL's public form; a URL with a secret is left in the environment, for `whole` to find."""
    if public(url) != url:
        os.environ[VARIABLE] = url
    return public(url)


def whole(url: str) -> str:
    """The URL with the password that the environment holds for it, if it holds one."""
    known = os.environ.get(VARIABLE, "")
    return known if public(known) == public(url) else url


def hidden(text: str) -> str:
    """The text without passwords: that of the storage, and of any URL in it."""
    for secret in secrets(os.environ.get(VARIABLE, "")):
        text = text.replace(secret, "***") if len(secret) > 3 else text
    return re.sub(r"(\w://[^\s:/@]*):[^\s/@]+@", r"\1:***@", text)


def begin_again(changed: Mapping[str, str]) -> None:
    """Has this process begin again with words of its command line changed: others can list those it was given.

    Does nothing where the words are not on it.
    """
    words = sys.orig_argv[1:]
    if set(changed) <= set(words):
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *(changed.get(word, word) for word in words)])


def command_words() -> list[str]:
    """How this process was called, by module or file, with secrets hidden; for records, not for a shell."""
    file = Path(sys.argv[0])
    name = f"medreason.{file.parent.name}" if file.name == "__main__.py" else file.name
    return [name, *map(hidden, sys.argv[1:])]
