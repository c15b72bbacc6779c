"""Chat templates and the tokenizer cache."""

import asyncio
import time

import pytest

from hekaton.errors import InvalidArgument
from hekaton.facts import CatalogEntry, ModelSpec, ModelState, Slo
from hekaton.v1 import memory_pb2
from hekaton_router.chat import ChatTemplate
from hekaton_router.tokenization import TextCodec, TokenizerCache, byte_codec

HELLO = [{"role": "user", "content": "Hi"}]


def templated(template: str) -> TextCodec:
    codec = byte_codec()
    return TextCodec(codec.tokenizer, codec.decoding, ChatTemplate(template, {"bos_token": "<s>"}))


def model(name: str) -> tuple[CatalogEntry, ModelSpec]:
    spec = ModelSpec(f"digest of {name}", "llama", "float32", 1, 1, 64, 256)
    return CatalogEntry(name, "", "", Slo(1, 1), ModelState.READY, spec), spec


def test_a_template_sees_messages_special_tokens_and_the_generation_prompt() -> None:
    codec = templated(
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}={{ m | tojson }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    text = codec.decode(codec.encode_chat(HELLO))
    assert text == '<s>user={"role": "user", "content": "Hi"}>'


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("", "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "refuses"),
        ("{% if %}", "refuses"),
        ("{{ messages[7]['role'] }}", "refuses"),
    ],
)
def test_a_template_that_refuses_or_misbehaves_is_the_callers_error(template: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        templated(template).encode_chat(HELLO)


class Source:
    """Counts what the cache asks for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def fetch(self, entry: CatalogEntry, spec: ModelSpec) -> memory_pb2.GetTokenizerResponse:
        self.asked.append(entry.name)
        await asyncio.sleep(0)
        return memory_pb2.GetTokenizerResponse(tokenizer_json=byte_codec().tokenizer.to_str().encode())


async def test_tokenizers_are_fetched_once_and_the_least_used_goes() -> None:
    source = Source()
    cache = TokenizerCache(source.fetch, timeout_s=5, capacity=2)
    await asyncio.gather(*(cache.get(*model("a")) for _ in range(5)))
    assert source.asked == ["a"]
    await cache.get(*model("b"))
    await cache.get(*model("a"))
    await cache.get(*model("c"))
    await cache.get(*model("a"))
    assert source.asked == ["a", "b", "c"]
    await cache.get(*model("b"))
    assert source.asked == ["a", "b", "c", "b"]


async def test_a_tokenisation_that_takes_too_long_is_refused() -> None:
    cache = TokenizerCache(Source().fetch, timeout_s=0.05)
    with pytest.raises(InvalidArgument, match=r"longer than 0\.05 s"):
        await cache.run(time.sleep, 0.3)
