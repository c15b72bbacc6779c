"""Which tokens a JSON schema, or a grammar, allows next: a function of it and the tokens so far, and of nothing else.

So a request gives the same tokens after any interruption: whoever takes it on feeds the tokens that it has produced.
"""

from collections.abc import Callable, Sequence

import torch
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer
from torch import Tensor

from hekaton.engine.interface import StepItem
from hekaton.errors import EngineFailed
from hekaton.facts import Sampling
from hekaton.jsonschema import grammar_of

WORD_BITS = 32


class Vocabulary:
    """A model's tokens, as matchers see them."""

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """Raises ValueError for what is no tokenizer."""
        self.size = vocab_size
        # A tokenizer may know tokens that the model has no logits for.
        known = max(vocab_size, Tokenizer.from_str(tokenizer_json).get_vocab_size())
        self.tokenizer = LLTokenizer(
            tokenizer_json, n_vocab=known, eos_token=list(eos_token_ids), slices=LLTokenizer.json_slices()
        )


class Constraint:
    """One request's place in its grammar."""

    def __init__(self, request_id: str, grammar: str, vocabulary: Vocabulary) -> None:
        self._request_id = request_id
        self._size = vocabulary.size
        self._tokenizer = vocabulary.tokenizer
        self._matcher = LLMatcher(vocabulary.tokenizer, grammar)
        self._fed = 0
        self._check()

    def forbidden(self, produced: Sequence[int]) -> Tensor:
        """True at each token that may not follow `produced`, (vocabulary). Raises EngineFailed naming the request."""
        if len(produced) < self._fed:
            self._matcher.reset()
            self._fed = 0
        self._matcher.consume_tokens(list(produced[self._fed :]))
        self._fed = len(produced)
        self._check()
        words = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.int32)
        self._check()
        bits = words[:, None] >> torch.arange(WORD_BITS, dtype=torch.int32) & 1
        forbidden = bits.flatten()[: self._size] == 0
        allowed = self._size - int(forbidden.sum())
        if not allowed:
            raise EngineFailed(
                f"request {self._request_id}: no token of the model goes on with what its schema asks for"
            )
        if allowed == 1:
            self._respell(forbidden)
        return forbidden

    def _respell(self, forbidden: Tensor) -> None:
        """Where only one text can follow, the library spells it as the tokenizer does.

        What looks like a special token in it comes as that token, which is none of the text.
        """
        only = int(forbidden.logical_not().nonzero())
        if self._matcher.validate_tokens([only]) or self._matcher.is_accepting():
            return
        text = self._matcher.compute_ff_bytes().decode(errors="replace")
        forbidden[only] = True
        forbidden[self._tokenizer.greedy_tokenize(text)[0]] = False

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineFailed(
                f"request {self._request_id}: its schema cannot be followed: {self._matcher.get_error()}"
            )


class Constraints:
    """Of the requests that have one. `vocabulary_of` gives that of a model, and may raise EngineFailed."""

    def __init__(self, vocabulary_of: Callable[[str], Vocabulary]) -> None:
        self._vocabulary_of = vocabulary_of
        self._vocabularies: dict[str, Vocabulary] = {}
        """By model."""
        self._kept: dict[str, Constraint] = {}
        """By request."""

    def forbidden(self, model: str, items: Sequence[StepItem]) -> dict[int, Tensor]:
        """By row, of those that have one: True at each token that may not come next."""
        found = {}
        for row, item in enumerate(items):
            if item.sampling is not None and item.sampling.constrained:
                if item.request_id not in self._kept:
                    self._kept[item.request_id] = self._new(model, item.request_id, item.sampling)
                found[row] = self._kept[item.request_id].forbidden(item.produced)
        return found

    def drop(self, request_id: str) -> None:
        """It has ended, or will be told all of its tokens again."""
        self._kept.pop(request_id, None)

    def forget(self, model: str) -> None:
        """A model is gone, or another one of its name."""
        self._vocabularies.pop(model, None)

    def _new(self, model: str, request_id: str, sampling: Sampling) -> Constraint:
        if model not in self._vocabularies:
            self._vocabularies[model] = self._vocabulary_of(model)
        grammar = sampling.grammar or grammar_of(sampling.json_schema)
        return Constraint(request_id, grammar, self._vocabularies[model])
