"""Questions -> what a served model writes, many requests at once; how they share its GPU is the server's affair.

    question --> POST SERVER/chat/completions --> reasoning (in its own field, where the server parts it), answer

The server puts the question into its own chat template: what is evaluated is what its users get.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

from medreason.config import Format, RunFailed
from medreason.core.storage import hidden
from medreason.inference.batched import Written
from medreason.models.checks import api_key
from medreason.models.prompts import joined_text

PATIENCE_SECONDS = 3600.0  # for one answer: a server lets a request wait for its turn
BUSY_SECONDS = 1.0  # until a server without a free place is asked again


def write_remotely(
    server: str,
    model: str,
    questions: Sequence[str | list[dict[str, str]]],
    style: Format,
    *,
    max_new_tokens: int,
    at_once: int,
    temperature: float = 0.0,
    seed: int = 0,
    setting: str = "server",
) -> Iterator[tuple[int, Written]]:
    """Pairs of a question's index and what was written to it, as answers come; `temperature` 0 is greedy.

    A question is a user's turn, or a chat in OpenAI's form. A server that has no place for a request is asked again. A
    key, where it asks for one, is in the environment (models/checks.py). Raises RunFailed, which names the address by
    its `setting`, where the server refuses or goes away.
    """
    from openai import APIStatusError, AsyncOpenAI, OpenAIError, RateLimitError

    client = AsyncOpenAI(base_url=server, api_key=api_key(setting) or "none", timeout=PATIENCE_SECONDS)
    places = iter(range(len(questions)))
    answered: asyncio.Queue[tuple[int, Written] | Exception] = asyncio.Queue()

    async def ask(place: int) -> Written:
        drawn: dict[str, Any] = {"seed": seed + place} if temperature else {}
        try:
            reply = await client.chat.completions.create(
                model=model,
                messages=chat(questions[place]),
                max_tokens=max_new_tokens,
                temperature=temperature,
                **drawn,
            )
        except APIStatusError as error:
            if not refuses_length(error.status_code, str(error)):
                raise
            return Written("", cut=False, too_long=True)
        choice = reply.choices[0]
        return Written(reply_text(choice.message, style), cut=choice.finish_reason == "length")

    async def ask_until_there_is_room(place: int) -> Written:
        given_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return await ask(place)
            except RateLimitError:
                if time.monotonic() > given_up:
                    raise
            await asyncio.sleep(BUSY_SECONDS)

    async def work() -> None:
        for place in places:  # one for all
            try:
                answered.put_nowait((place, await ask_until_there_is_room(place)))
            except Exception as error:
                answered.put_nowait(error)

    async def begin() -> list[asyncio.Task[None]]:
        return [asyncio.create_task(work()) for _ in range(at_once)]

    with asyncio.Runner() as runner:  # which at the end, also an early one, drops what is asked and not answered
        workers = runner.run(begin())
        for _ in questions:
            found = runner.run(answered.get())
            if isinstance(found, OpenAIError):
                why = " ".join(str(found).split())[:300]
                raise RunFailed(
                    f"{setting}={hidden(server)} model={model}: {why}; the same command goes on with what is left"
                )
            if isinstance(found, Exception):
                raise found
            yield found
        runner.run(finish(client, workers))


def chat(question: str | list[dict[str, str]]) -> Any:
    """A question as the messages of a request."""
    return [{"role": "user", "content": question}] if isinstance(question, str) else question


def refuses_length(status: int, said: str) -> bool:
    """Whether a server refuses a prompt because, with its answer, it is longer than the model reads.

    vLLM's 400 says "maximum context length", llama.cpp's "exceeds the available context size".
    """
    return status == 413 or (status == 400 and "context" in said and ("length" in said or "size" in said))


async def finish(client: Any, workers: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.gather(*workers)
    await client.close()


def reply_text(message: Any, style: Format) -> str:
    """A reply as the model wrote it. Servers name the field of its reasoning in two ways, or leave it in the answer."""
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or ""
    return joined_text(reasoning.strip(), (message.content or "").strip(), style)
