"""A generation in the words of chat completions, or of text completions."""

import time
from dataclasses import dataclass, field
from typing import Protocol

from hekaton import facts
from hekaton.rpc import convert
from hekaton.v1 import inference_pb2 as pb
from hekaton_router.detokenizer import Decoding
from hekaton_router.http import tools
from hekaton_router.http.logprobs import characters, chat_logprobs, text_logprobs
from hekaton_router.http.replies import (
    AssistantMessage,
    Call,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    ChatReply,
    Delta,
    FinishReason,
    TextChoice,
    TextLogprobs,
    TextReply,
    Usage,
)

REASONS: dict[facts.FinishReason, FinishReason] = {
    facts.FinishReason.STOP: "stop",
    facts.FinishReason.LENGTH: "length",
    facts.FinishReason.TOOL_CALLS: "tool_calls",
}

NOTHING = pb.Tokens()


@dataclass(slots=True)
class Progress:
    """What has come of a generation."""

    model: str
    choices: int
    accepted: pb.Accepted
    decoding: Decoding | None
    """Of the model, if log probabilities are asked for."""
    created: int = field(default_factory=lambda: int(time.time()))
    texts: dict[int, list[str]] = field(default_factory=dict)
    calls: dict[int, list[Call]] = field(default_factory=dict)
    """Of tools, by choice, if the answer is whole."""
    tokens: dict[int, pb.Tokens] = field(default_factory=dict)
    """All tokens of each choice, if log probabilities are asked for and the answer is whole."""
    begun: dict[int, int] = field(default_factory=dict)
    """How many characters of each choice's text have begun, as its tokens spell it."""
    reasons: dict[int, FinishReason] = field(default_factory=dict)
    completion_tokens: int = 0
    """Of the outputs that have ended."""
    streamed_tokens: int = 0

    def take(self, tokens: pb.Tokens) -> None:
        self.texts.setdefault(tokens.choice, []).append(tokens.text)
        tools.gather(self.calls.setdefault(tokens.choice, []), tokens.tool_calls)
        if self.decoding:
            self.tokens.setdefault(tokens.choice, pb.Tokens()).MergeFrom(
                pb.Tokens(token_ids=tokens.token_ids, logprobs=tokens.logprobs)
            )

    def end(self, finished: pb.Finished) -> FinishReason:
        reason = self.reasons[finished.choice] = REASONS[convert.finish_from_pb(finished.reason)]
        self.completion_tokens += finished.stats.completion_tokens
        return reason

    def usage(self) -> Usage:
        return self._usage(self.completion_tokens)

    def usage_so_far(self) -> Usage:
        return self._usage(self.streamed_tokens)

    def _usage(self, completion_tokens: int) -> Usage:
        prompt_tokens = self.accepted.prompt_tokens
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )

    def text(self, choice: int) -> str:
        return "".join(self.texts.get(choice, ()))


def _spoken(progress: Progress, tokens: pb.Tokens) -> ChatLogprobs | None:
    return chat_logprobs(progress.decoding, tokens) if progress.decoding else None


def _written(progress: Progress, tokens: pb.Tokens) -> TextLogprobs | None:
    if not progress.decoding:
        return None
    told = text_logprobs(progress.decoding, tokens, progress.begun.get(tokens.choice, 0))
    if told.text_offset:
        last = tokens.first_index + len(tokens.token_ids) - 1
        begun = told.text_offset[-1] + characters(progress.decoding, tokens.token_ids[-1], last)
        progress.begun[tokens.choice] = begun
    return told


class Dialect(Protocol):
    """How one kind of completion is said. Chunks without choices carry the usage only."""

    def whole(self, progress: Progress) -> ChatReply | TextReply: ...

    def openings(self, progress: Progress) -> list[ChatChunk]: ...

    def piece(self, progress: Progress, tokens: pb.Tokens) -> ChatChunk | TextReply: ...

    def closing(self, progress: Progress, finished: pb.Finished) -> ChatChunk | TextReply: ...

    def bill(self, progress: Progress) -> ChatChunk | TextReply: ...


class ChatDialect:
    def whole(self, progress: Progress) -> ChatReply:
        choices = [
            ChatChoice(
                index=index,
                message=self._message(progress, index),
                logprobs=_spoken(progress, progress.tokens.get(index, NOTHING)),
                finish_reason=reason,
            )
            for index, reason in sorted(progress.reasons.items())
        ]
        return ChatReply(
            id=self._id(progress),
            created=progress.created,
            model=progress.model,
            choices=choices,
            usage=progress.usage(),
        )

    def openings(self, progress: Progress) -> list[ChatChunk]:
        opening = Delta(role="assistant", content="")
        return [self._chunk(progress, ChatChunkChoice(index=index, delta=opening)) for index in range(progress.choices)]

    def piece(self, progress: Progress, tokens: pb.Tokens) -> ChatChunk:
        said = tokens.text or not tokens.tool_calls
        delta = Delta(
            content=tokens.text if said else None,
            tool_calls=tools.deltas(tokens.tool_calls) or None,
        )
        choice = ChatChunkChoice(index=tokens.choice, delta=delta, logprobs=_spoken(progress, tokens))
        return self._chunk(progress, choice)

    def closing(self, progress: Progress, finished: pb.Finished) -> ChatChunk:
        reason = progress.end(finished)
        return self._chunk(progress, ChatChunkChoice(index=finished.choice, delta=Delta(), finish_reason=reason))

    def bill(self, progress: Progress) -> ChatChunk:
        return self._chunk(progress).model_copy(update={"usage": progress.usage()})

    def _chunk(self, progress: Progress, *choices: ChatChunkChoice) -> ChatChunk:
        return ChatChunk(id=self._id(progress), created=progress.created, model=progress.model, choices=list(choices))

    def _message(self, progress: Progress, choice: int) -> AssistantMessage:
        text, calls = progress.text(choice), progress.calls.get(choice)
        return AssistantMessage(content=text or (None if calls else ""), tool_calls=calls or None)

    def _id(self, progress: Progress) -> str:
        return f"chatcmpl-{progress.accepted.request_id}"


class TextDialect:
    def whole(self, progress: Progress) -> TextReply:
        choices = [
            TextChoice(
                index=index,
                text=progress.text(index),
                logprobs=_written(progress, progress.tokens.get(index, NOTHING)),
                finish_reason=reason,
            )
            for index, reason in sorted(progress.reasons.items())
        ]
        return self._reply(progress, *choices).model_copy(update={"usage": progress.usage()})

    def openings(self, progress: Progress) -> list[ChatChunk]:
        return []

    def piece(self, progress: Progress, tokens: pb.Tokens) -> TextReply:
        return self._reply(
            progress, TextChoice(index=tokens.choice, text=tokens.text, logprobs=_written(progress, tokens))
        )

    def closing(self, progress: Progress, finished: pb.Finished) -> TextReply:
        reason = progress.end(finished)
        return self._reply(progress, TextChoice(index=finished.choice, text="", finish_reason=reason))

    def bill(self, progress: Progress) -> TextReply:
        return self._reply(progress).model_copy(update={"usage": progress.usage()})

    def _reply(self, progress: Progress, *choices: TextChoice) -> TextReply:
        return TextReply(
            id=f"cmpl-{progress.accepted.request_id}",
            created=progress.created,
            model=progress.model,
            choices=list(choices),
        )
