"""Text to token ids: tokenizers of the registered models, fetched once and kept."""

import asyncio
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from hekaton.errors import InvalidArgument
from hekaton.facts import CatalogEntry, ModelSpec
from hekaton.v1 import memory_pb2
from hekaton_router.admission import EMULATED
from hekaton_router.chat import ChatTemplate, Message, Tool
from hekaton_router.detokenizer import Decoding, byte_alphabet

P = ParamSpec("P")
T = TypeVar("T")
Fetch = Callable[[CatalogEntry, ModelSpec], Awaitable[memory_pb2.GetTokenizerResponse]]
EMULATED_TEMPLATE = """{% if tools %}tools: {{ tools | tojson }}{{ "\\n" }}{% endif %}
{% for message in messages %}{{ message.role }}: {{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}
{{- "\\n" }}{% endfor %}assistant:"""


@dataclass(frozen=True, slots=True)
class TextCodec:
    """One model's tokenizer and chat template. Its methods may take long: call them off the event loop."""

    tokenizer: Tokenizer
    decoding: Decoding
    template: ChatTemplate
    _showing: dict[frozenset[int], Decoding] = field(default_factory=dict)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with the special tokens that the tokenizer adds by itself."""
        return self.tokenizer.encode(text).ids

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Ids of a conversation up to where the model answers. Raises InvalidArgument if the template refuses it."""
        return self.tokenizer.encode(self.template.render(messages, tools), add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, special tokens skipped."""
        return self.decoding.decode(token_ids)

    def tokens_of_their_own(self, texts: Sequence[str]) -> dict[int, AddedToken]:
        """Which of these texts are tokens beside the vocabulary, by id."""
        added = self.tokenizer.get_added_tokens_decoder()
        return {token_id: one for token_id, one in added.items() if one.content in texts}

    def decoding_showing(self, texts: Sequence[str]) -> Decoding:
        """The same as `decoding`, but special tokens of these texts are not skipped."""
        own = self.tokens_of_their_own(texts) if texts else {}
        shown = frozenset(token_id for token_id, one in own.items() if one.special)
        if not shown:
            return self.decoding
        if shown not in self._showing:
            self._showing[shown] = Decoding(self.tokenizer, shown)
        return self._showing[shown]


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
    return TextCodec(tokenizer, Decoding(tokenizer), ChatTemplate(EMULATED_TEMPLATE, {}))


def _codec_from(response: memory_pb2.GetTokenizerResponse) -> TextCodec:
    tokenizer = Tokenizer.from_buffer(response.tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    template = ChatTemplate(response.chat_template, dict(response.special_tokens))
    return TextCodec(tokenizer, Decoding(tokenizer), template)
