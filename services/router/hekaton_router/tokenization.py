"""Text to token ids: tokenizers of the registered models, fetched once and kept."""

import asyncio
import json
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn, ParamSpec, TypeVar

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hekaton.errors import InvalidArgument
from hekaton.facts import CatalogEntry, ModelSpec
from hekaton.v1 import memory_pb2
from hekaton_router.admission import EMULATED
from hekaton_router.detokenizer import Decoding, byte_alphabet

P = ParamSpec("P")
T = TypeVar("T")
Fetch = Callable[[CatalogEntry, ModelSpec], Awaitable[memory_pb2.GetTokenizerResponse]]


@dataclass(frozen=True, slots=True)
class TextCodec:
    """One model's tokenizer and chat template. Its methods may take long: call them off the event loop."""

    tokenizer: Tokenizer
    decoding: Decoding
    chat_template: str
    special_tokens: Mapping[str, str]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with the special tokens that the tokenizer adds by itself."""
        return self.tokenizer.encode(text).ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation up to where the model answers. Raises InvalidArgument if the template refuses it."""
        if not self.chat_template:
            raise InvalidArgument("this model has no chat template: send the prompt as text")
        return self.tokenizer.encode(self._render(messages), add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, special tokens skipped."""
        return self.decoding.decode(token_ids)

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        environment.filters["tojson"] = _tojson
        try:
            template = environment.from_string(self.chat_template)
            return template.render(messages=messages, add_generation_prompt=True, **self.special_tokens)
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InvalidArgument(f"the model's chat template refuses these messages: {error}") from error


class TokenizerCache:
    """The most recently used tokenizers, by digest of their model."""

    def __init__(self, fetch: Fetch, *, timeout_s: float, capacity: int = 64) -> None:
        self._fetch = fetch
        self._timeout_s = timeout_s
        self._capacity = capacity
        self._codecs: OrderedDict[str, TextCodec] = OrderedDict()
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def get(self, entry: CatalogEntry, spec: ModelSpec) -> TextCodec:
        """The codec of a registered model. Raises Unavailable if it is not at hand and no memory service answers."""
        lock = self._locks.setdefault(spec.digest, asyncio.Lock())
        async with lock:
            codec = self._codecs.get(spec.digest) or await self._load(entry, spec)
        self._codecs[spec.digest] = codec
        self._codecs.move_to_end(spec.digest)
        while len(self._codecs) > self._capacity:
            self._codecs.popitem(last=False)
        return codec

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a codec's method in a thread. Raises InvalidArgument if it takes longer than the limit."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.to_thread(function, *args, **kwargs)
        except TimeoutError as error:
            raise InvalidArgument(
                f"the prompt, or the schema, took longer than {self._timeout_s:g} s: shorten it"
            ) from error

    async def _load(self, entry: CatalogEntry, spec: ModelSpec) -> TextCodec:
        if spec.architecture == EMULATED:
            return byte_codec()
        return await asyncio.to_thread(_codec_from, await self._fetch(entry, spec))


def byte_codec() -> TextCodec:
    """For emulated models: token id i is byte i."""
    tokenizer = Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
    return TextCodec(tokenizer, Decoding(tokenizer), template, {})


def _codec_from(response: memory_pb2.GetTokenizerResponse) -> TextCodec:
    tokenizer = Tokenizer.from_buffer(response.tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return TextCodec(tokenizer, Decoding(tokenizer), response.chat_template, dict(response.special_tokens))


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
