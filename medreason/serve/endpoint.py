"""OpenAI's API over one model: transformers' handlers of requests, behind bounds that its own server lacks.

    request --place free? (429)--> body --short enough? (413)--> --well formed? (400), this model? (404)-->
        wait for the turn --tokens fit the context? (413)--> handler --> answer, whole or streamed

transformers' server takes prompts and answers of any length, keeps at an answer whose asker has left, loads whatever
model or file a request names and unloads its own at a request's wish. Bounds in front of it could not end an answer
that is not streamed, so its handlers are called from here: one at a time, while a limited number waits.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from fastapi import HTTPException
from jinja2 import TemplateError
from transformers import BatchEncoding, StoppingCriteriaList
from transformers.cli.serving.chat_completion import UNUSED_CHAT_COMPLETION_FIELDS, ChatCompletionHandler
from transformers.cli.serving.completion import UNUSED_LEGACY_COMPLETION_FIELDS, CompletionHandler
from transformers.cli.serving.response import UNUSED_RESPONSE_FIELDS, ResponseHandler
from transformers.cli.serving.utils import GenerateManager, GenerationState, Modality, build_response_parser

from medreason.config import ConfigError
from medreason.core.progress import say
from medreason.models.checks import lacks_bfloat16
from medreason.models.control_tokens import encode, hide
from medreason.serve.request_checks import Body, Refused, check_model, checked
from medreason.serve.stops import Held, Watch, before_stop

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BYTES_A_TOKEN = 16  # of a request's JSON, escapes included: more than any script needs on average
BYTES_BESIDE = 65_536  # for all but the prompt
SENDING_SECONDS, TAKING_SECONDS = 20.0, 60.0  # that a client has to send its request, and to take a piece of an answer


@dataclass(eq=False)
class Work:
    """One request. `left`: nobody waits for its answer any more; `sampled`: it names a temperature.

    `chat`: what it answers comes without the reasoning; `stops`: texts at which its answer ends.
    """

    begun: bool = False
    left: bool = False
    sampled: bool = False
    chat: bool = False
    stops: list[str] = field(default_factory=list)


AT_WORK: ContextVar[Work] = ContextVar("at_work")


class Processor:
    """A tokenizer in whose prompts only the chat template writes control tokens: what people send stays text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *texts: Any, **settings: Any) -> Any:
        return self.tokenizer(*texts, **settings)

    def apply_chat_template(self, turns: Any, *, tools: Any = None, **settings: Any) -> Any:
        settings |= {"tokenize": False, "return_dict": False, "return_tensors": None}
        text = self.tokenizer.apply_chat_template(self.hidden(turns), tools=self.hidden(tools), **settings)
        tokens = torch.tensor([encode(self.tokenizer, text)])
        return BatchEncoding({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})

    def hidden(self, part: Any) -> Any:
        """All texts within, names of control tokens out of sight."""
        if isinstance(part, dict):
            return {self.hidden(key): self.hidden(value) for key, value in part.items()}
        if isinstance(part, list):
            return [self.hidden(each) for each in part]
        return hide(self.tokenizer, part) if isinstance(part, str) else part


@dataclass(frozen=True)
class Served:
    """The one model there is, in the place of transformers' manager, which loads what a request names."""

    force_model: str  # its name
    model: Any
    tokenizer: Any
    context_tokens: int  # prompt and answer

    def process_model_name(self, name: str) -> str:
        return self.force_model

    def load_model_and_processor(self, name: str, **_: Any) -> tuple[Any, Any]:
        return self.model, Processor(self.tokenizer)

    def get_model_modality(self, *_: Any, **__: Any) -> Modality:
        return Modality.LLM


class BoundedGeneration(GenerateManager):  # type: ignore[misc]  # transformers says no types here
    """Generation within the model's context, for as long as somebody waits for it."""

    def __init__(self, context_tokens: int) -> None:
        super().__init__()
        self.context_tokens = context_tokens

    def generate_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, **more: Any) -> Any:
        bounded = self.bounded(model, processor, inputs, gen_config)
        queue, streamer = super().generate_streaming(model, processor, bounded, gen_config, **more)
        return (Held(queue, stops) if (stops := AT_WORK.get().stops) else queue), streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, **more: Any
    ) -> Any:
        bounded = self.bounded(model, processor, inputs, gen_config)
        text, *rest = await super().generate_non_streaming(model, processor, bounded, gen_config, **more)
        return before_stop(text, AT_WORK.get().stops), *rest

    def bounded(self, model: Any, processor: Any, inputs: Any, gen_config: Any) -> dict[str, Any]:
        """What `generate` is given. Raises Refused for a prompt that leaves no room for an answer."""
        prompt = inputs["input_ids"].shape[-1]
        room = self.context_tokens - prompt
        if room < 1:
            raise too_long(f"{prompt:,} tokens", self.context_tokens)
        if not prompt:
            raise Refused(400, "an empty prompt: write one")
        gen_config.max_new_tokens = min(gen_config.max_new_tokens or room, room)
        work = AT_WORK.get()
        if work.sampled:
            gen_config.do_sample = True  # transformers' handlers take a temperature and leave the answer greedy

        def nobody_waits(tokens: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.full((len(tokens),), work.left, device=tokens.device, dtype=torch.bool)

        ends: list[Any] = [nobody_waits]
        if work.stops:
            parser = build_response_parser(processor, model, inputs["input_ids"]) if work.chat else None
            ends.append(Watch(work.stops, processor, parser))
        return {**inputs, "stopping_criteria": StoppingCriteriaList(ends)}


class ChatHandler(ChatCompletionHandler):  # type: ignore[misc]
    def _build_completion(self, request_id: str, content: str, *rest: Any, **more: Any) -> Any:
        return super()._build_completion(request_id, before_stop(content, AT_WORK.get().stops), *rest, **more)


class OneGeneration(GenerationState):  # type: ignore[misc]
    def __init__(self, generation: BoundedGeneration) -> None:
        super().__init__()
        self.generation = generation

    def get_manager(self, model_id: str, use_cb: bool = False) -> BoundedGeneration:
        return self.generation


class Endpoint:
    """The ASGI application. `max_requests`: so many are at work or wait for it; the next one is told to come again."""

    def __init__(self, served: Served, max_requests: int) -> None:
        self.served, self.max_requests = served, max_requests
        state = OneGeneration(BoundedGeneration(served.context_tokens))
        manager: Any = served
        self.handlers: dict[str, tuple[Any, set[str]]] = {  # and what transformers reads over
            "/v1/chat/completions": (ChatHandler(manager, state), UNUSED_CHAT_COMPLETION_FIELDS),
            "/v1/completions": (CompletionHandler(manager, state), UNUSED_LEGACY_COMPLETION_FIELDS),
            "/v1/responses": (ResponseHandler(manager, state), UNUSED_RESPONSE_FIELDS),
        }
        self.longest_body = BYTES_A_TOKEN * served.context_tokens + BYTES_BESIDE
        self.turn = asyncio.Lock()
        self.works: set[Work] = set()  # requests that have a place
        self.ending = False
        self.card = {
            "id": served.force_model, "object": "model", "created": int(time.time()), "owned_by": "medreason",
            "max_model_len": served.context_tokens,
        }  # fmt: skip

    def end(self) -> None:
        """Ends all that is at work, within a token's time."""
        self.ending = True
        for work in list(self.works):
            work.left = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun = False

        async def send_on(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.respond(scope, receive, send_on)
        except Exception as error:
            refusal = refused(error)
            if refusal.status == 500:
                say(f"a request failed: {type(error).__name__}: {error}")
            if not begun:
                kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
                told = {"message": str(refusal), "type": kind, "param": None, "code": refusal.code}
                await send_json(send, refusal.status, {"error": told}, refusal.headers)

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request. Raises Refused, and whatever transformers raises."""
        method, path = scope["method"], scope["path"].rstrip("/")
        asked, _, name = path.partition("/v1/models/")
        if path in self.handlers and method == "POST":
            await self.answer(path, scope, receive, send)
        elif method != "GET":
            raise Refused(404, f"{method} {path[:100]}: there is none; POST to {', '.join(self.handlers)}")
        elif path == "/health":
            await send_json(send, 200, {"status": "ok"})
        elif path == "/v1/models":
            await send_json(send, 200, {"object": "list", "data": [self.card]})
        elif name and not asked:
            check_model(name, self.served.force_model)
            await send_json(send, 200, self.card)
        else:
            raise Refused(404, f"GET {path[:100]}: there is none; there are /v1/models and /health")

    async def answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        if self.ending:
            raise Refused(503, "the server is ending")
        if len(self.works) >= self.max_requests:
            text = f"{len(self.works)} requests are at work or wait already; come again"
            raise Refused(429, text, "rate_limit_exceeded", {"retry-after": "1"})
        work = Work()
        self.works.add(work)
        gone: asyncio.Task[None] | None = None
        try:
            content = await read_body(scope, receive, self.longest_body, self.served.context_tokens)
            body = checked(path, content, self.served.force_model, self.served.tokenizer)
            body = {name: value for name, value in body.items() if name not in self.handlers[path][1]}
            work.sampled, work.chat = bool(body.get("temperature")), path == "/v1/chat/completions"
            if path != "/v1/responses":  # which knows none, and is refused
                work.stops = body.pop("stop", [])
            gone = asyncio.create_task(disconnected(receive))
            answered = asyncio.create_task(self.in_turn(path, body, work, scope, send))
            await asyncio.wait({gone, answered}, return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                work.left = True
                if not work.begun:
                    answered.cancel()
                await asyncio.wait({answered})  # the place is taken until a begun answer has ended
            if not answered.cancelled():
                answered.result()
        finally:
            work.left = True
            self.works.discard(work)
            if gone is not None:
                gone.cancel()

    async def in_turn(self, path: str, body: Body, work: Work, scope: Scope, send: Send) -> None:
        """Waits for the turn, then answers."""

        async def patient_send(message: MutableMapping[str, Any]) -> None:
            if work.left:
                return
            try:
                async with asyncio.timeout(TAKING_SECONDS):
                    await send(message)
            except TimeoutError:
                work.left = True

        async with self.turn:
            work.begun = True
            AT_WORK.set(work)
            if not work.left:
                response = await self.handlers[path][0].handle_request(body, str(uuid.uuid4()))
                if work.left:  # the client will not read it, and at the server's end it is not whole
                    raise Refused(503, "the server is ending")
                await response(scope, nothing, patient_send)


# transformers reads requests without looking first, and chat templates refuse turns
MISREAD = (LookupError, TypeError, ValueError, AttributeError, TemplateError, RecursionError, ConfigError)


def refused(error: Exception) -> Refused:
    """What a client is told of an error."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):
        return Refused(400 if error.status_code == 422 else error.status_code, str(error.detail)[:500])
    if isinstance(error, MISREAD):
        return Refused(400, f"the request cannot be answered: {type(error).__name__}: {str(error)[:500]}")
    return Refused(500, f"the model failed at this request ({type(error).__name__})")


def too_long(what: str, context_tokens: int) -> Refused:
    text = f"a prompt of {what} is too long: the model reads {context_tokens:,} tokens, answer included; shorten it"
    return Refused(413, text, "context_length_exceeded")


async def read_body(scope: Scope, receive: Receive, longest: int, context_tokens: int) -> bytes:
    """A request's body. Raises Refused where it is too long, too slow, or not sent to its end."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > longest:
        raise too_long(f"{int(declared):,} bytes", context_tokens)
    content = bytearray()
    try:
        async with asyncio.timeout(SENDING_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the client left")
                content += message.get("body", b"")
                if len(content) > longest:
                    raise too_long(f"more than {longest:,} bytes", context_tokens)
                if not message.get("more_body"):
                    return bytes(content)
    except TimeoutError as error:
        raise Refused(408, f"the request did not come within {SENDING_SECONDS:.0f} seconds") from error


async def disconnected(receive: Receive) -> None:
    """Ends when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def nothing() -> MutableMapping[str, Any]:
    """For a response that would watch for its client's leaving, which is seen already."""
    await asyncio.get_running_loop().create_future()
    return {}


async def send_json(send: Send, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
    text = json.dumps(content).encode()
    told = {"content-type": "application/json", "content-length": str(len(text)), **(headers or {})}
    pairs = [(name.encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": text})


def load_served(folder: str, name: str, context_tokens: int) -> Served:
    """The model of a folder: in its own type on a GPU, in float16 on one without bfloat16, else in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # as medreason.chat has it: bfloat16 stalls on a CPU whose cores are shared
    if torch.cuda.is_available():
        place: dict[str, Any] = {"dtype": torch.float16 if lacks_bfloat16() else "auto", "device_map": "auto"}
    else:
        place = {"dtype": torch.float32}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, **place)
    return Served(name, model.eval(), AutoTokenizer.from_pretrained(folder), context_tokens)


def serve_requests(endpoint: Endpoint, host: str, port: int, ready: Callable[[], None]) -> bool:
    """Answers requests until a signal ends it; `ready` is called when it does. Whether it ever did."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

        def handle_exit(self, sig: int, frame: Any) -> None:
            endpoint.end()
            super().handle_exit(sig, frame)

    settings = uvicorn.Config(
        endpoint, host=host, port=port, lifespan="off", ws="none", log_level="critical", access_log=False,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = Server(settings)
    with suppress(KeyboardInterrupt):
        server.run()
    return server.started
