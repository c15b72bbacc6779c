"""The pieces of a streamed text make the whole text."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from hekaton_router.detokenizer import REPLACEMENT, Decoding, Detokenizer
from hekaton_router.tokenization import byte_codec


def byte_level() -> Tokenizer:
    """Like GPT-2's: id i is byte i, 256 a special token."""
    tokenizer = byte_codec().tokenizer
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Like Llama 2's: words that begin with a metaspace, and bytes for everything else."""
    words = ["<unk>", "<s>", "</s>", "▁", "▁the", "▁cat", "s", "é", "."]
    vocab = {token: i for i, token in enumerate([*words, *(f"<0x{value:02X}>" for value in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in words[:3]])
    return tokenizer


def word_piece() -> Tokenizer:
    """Like BERT's."""
    vocab = {token: i for i, token in enumerate(["[UNK]", "the", "cat", "##s", ".", ",", "'", "[CLS]"])}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens([AddedToken("[CLS]", special=True)])
    return tokenizer


TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback(), "word_piece": word_piece()}
EMOJI = "🦊é\N{ZERO WIDTH JOINER}漢".encode()


@st.composite
def outputs(draw: st.DrawFn) -> tuple[Tokenizer, list[list[int]]]:
    """A tokenizer and an output of it, in chunks: any ids, and runs of bytes that are characters."""
    tokenizer = TOKENIZERS[draw(st.sampled_from(sorted(TOKENIZERS)))]
    first_byte = tokenizer.token_to_id("<0x00>") or 0
    ids = st.lists(st.integers(0, tokenizer.get_vocab_size() + 3), max_size=5)
    whole = st.just([first_byte + value for value in EMOJI]) if tokenizer.get_vocab_size() > 256 else ids
    return tokenizer, draw(
        st.lists(st.one_of(ids, whole, st.lists(st.just(first_byte + 0xF0), max_size=2)), max_size=8)
    )


@given(outputs())
@example((TOKENIZERS["byte_fallback"], [[9, 265], [137]]))
def test_the_pieces_make_the_decoding_of_all_ids(output: tuple[Tokenizer, list[list[int]]]) -> None:
    tokenizer, chunks = output
    detokenizer = Detokenizer(Decoding(tokenizer))
    pieces = [detokenizer.push(chunk) for chunk in chunks]
    assert not any(piece.endswith(REPLACEMENT) for piece in pieces)
    whole = tokenizer.decode([token_id for chunk in chunks for token_id in chunk], skip_special_tokens=True)
    assert "".join(pieces) + detokenizer.flush() == whole


@given(st.text(), st.integers(1, 7))
def test_a_text_comes_back_whatever_the_chunks(text: str, size: int) -> None:
    codec = byte_codec()
    ids = codec.encode(text)
    assert ids == list(text.encode())
    detokenizer = Detokenizer(codec.decoding)
    pieces = [detokenizer.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    assert "".join(pieces) + detokenizer.flush() == text


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_a_character_is_held_back_until_it_is_whole(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    first_byte = tokenizer.token_to_id("<0x00>") or 0
    detokenizer = Detokenizer(Decoding(tokenizer))
    pieces = [detokenizer.push([first_byte + value]) for value in "🦊".encode()]
    assert pieces[:3] == [""] * 3
    assert pieces[3] + detokenizer.flush() == "🦊"


def test_what_never_becomes_whole_is_flushed() -> None:
    detokenizer = Detokenizer(byte_codec().decoding)
    assert detokenizer.push(b"a") == "a"
    assert detokenizer.push([0xF0, 0x9F]) == ""
    assert detokenizer.flush() == REPLACEMENT
