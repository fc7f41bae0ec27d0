"""What clients may ask: read within bounds, checked before any work; what is not supported is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.requests import Request

MOST_BYTES = 2**24  # of a request's body
MOST_SAMPLES = 128  # of a prompt
MOST_MESSAGES, MOST_TOOLS = 10_000, 1_000  # of a conversation
STOPS, STOP_LENGTH = 4, 1000  # strings that end a reply, as OpenAI allows, and characters of each
MOST_SEED = 2**63 - 1 - MOST_SAMPLES
# What changes what is sampled, and posttrain does not do, with the values that ask for nothing.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "parallel_tool_calls": (True,),
    "top_logprobs": (0,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "functions": ([],),
    "modalities": (["text"],),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
}
# What changes nothing that a client is told.
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}


KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")  # of a message, that are kept
Stop = Annotated[str, Field(min_length=1, max_length=STOP_LENGTH)]


class InvalidRequest(ValueError):
    """A request that cannot be answered; its message is the client's."""


class Sampled(BaseModel):
    """The fields that both kinds of completion have."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, le=MOST_SEED)] | None = None
    stop: Annotated[list[Stop], Field(max_length=STOPS, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[int], Field(fail_fast=True)] | None = None
    stream: bool | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def stop_as_list(cls, value: Any) -> Any:
        """One string, or several."""
        return [value] if isinstance(value, str) else value


class TextRequest(Sampled):
    """A completion of a text, or of token ids."""

    prompt: Annotated[list[int], Field(fail_fast=True)] | str
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    return_token_ids: bool | None = None


class Function(BaseModel):
    """A function that a message calls."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str
    arguments: str | dict[str, Any] = "{}"


class Call(BaseModel):
    """A message's call of a tool."""

    model_config = ConfigDict(strict=True, extra="allow")

    function: Function


class ClientMessage(BaseModel):
    """A message of a conversation; what else it has is dropped."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Any] | None = None
    tool_calls: Annotated[list[Call], Field(fail_fast=True)] | None = None


class StreamOptions(BaseModel):
    """What a stream ends with."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(Sampled):
    """A chat completion."""

    messages: Annotated[list[ClientMessage], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[Any], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["auto", "none"] | None = None


class Verdict(BaseModel):
    """What an agent's own judge says of its episode."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    reward: Annotated[float, Field(allow_inf_nan=False)]


Fields = TypeVar("Fields", bound=BaseModel)


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object that a client sends. Raises InvalidRequest for anything else, and for more than `MOST_BYTES`."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise InvalidRequest(
            "the request is not application/json (a web page of another site could send anything else)"
        )
    said = request.headers.get("content-length", "0")
    if not said.isdigit() or int(said) > MOST_BYTES:
        raise InvalidRequest(f"the request has more than {MOST_BYTES} bytes")
    pieces, held = list[bytes](), 0
    async for piece in request.stream():
        held += len(piece)
        if held > MOST_BYTES:
            raise InvalidRequest(f"the request has more than {MOST_BYTES} bytes")
        pieces.append(piece)
    try:
        body = json.loads(b"".join(pieces), parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequest("the request is not a JSON object")
    return body


def no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def fields_of(kind: type[Fields], body: Mapping[str, Any]) -> Fields:
    """The request's fields. Raises InvalidRequest naming the first that is wrong, or not supported here."""
    for name, plain in PLAIN.items():
        if body.get(name) is not None and not any(same(body[name], one) for one in plain):
            raise InvalidRequest(f"{name}: {excerpt(body[name])} is not supported here: leave it out")
    given = {name: value for name, value in body.items() if name not in {*PLAIN, *IGNORED}}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, own_place(first["loc"])))
        what = "is not supported here: leave it out" if first["type"] == "extra_forbidden" else first["msg"]
        raise InvalidRequest(f"{where}: {what}") from error
    except RecursionError as error:
        raise InvalidRequest("the request is nested too deep") from error


def own_place(places: Iterable[int | str]) -> list[int | str]:
    """A field's place without pydantic's names of the alternatives of a union."""
    return [place for place in places if isinstance(place, int) or place.isidentifier()]


def same(value: Any, plain: Any) -> bool:
    """Equal, and true is not 1."""
    return value == plain and isinstance(value, bool) == isinstance(plain, bool)


def excerpt(value: Any) -> str:
    return repr(value)[:80]
