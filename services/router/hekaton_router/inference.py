"""InferenceService: text in, tokens out."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import structlog
from opentelemetry import trace

from hekaton import telemetry
from hekaton.config import RouterSettings
from hekaton.errors import Diverged, HekatonError, InvalidArgument
from hekaton.facts import ModelSpec, RequestRecord, token_crc
from hekaton.rpc import convert
from hekaton.rpc.interceptors import Context
from hekaton.v1 import common_pb2, inference_pb2_grpc
from hekaton.v1 import inference_pb2 as pb
from hekaton_router import admission, tenancy
from hekaton_router.choices import Events, merged, records_of
from hekaton_router.detokenizer import Decoding
from hekaton_router.intake import Admitted, Intake
from hekaton_router.keeper import Keeper, Reading
from hekaton_router.live import LiveRequest
from hekaton_router.metrics import RouterMetrics
from hekaton_router.tenancy import Quotas
from hekaton_router.tokenization import TextCodec
from hekaton_router.tools.formats import FORMATS, call_id
from hekaton_router.tools.parser import CallPiece, Written
from hekaton_router.words import NOTHING, Delivered, Words

log = structlog.get_logger(__name__)
UNKNOWN = common_pb2.TokenLogprobs(logprob=math.nan)
"""Of a token whose own were lost with the process that knew them."""


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(
        self, settings: RouterSettings, intake: Intake, keeper: Keeper, metrics: RouterMetrics, quotas: Quotas
    ) -> None:
        self._settings = settings
        self._intake = intake
        self._keeper = keeper
        self._metrics = metrics
        self._quotas = quotas

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        async with aclosing(self.generate(request, self.budget_s(context))) as events:
            async for event in events:
                yield event

    async def generate(self, request: pb.GenerateRequest, budget_s: float) -> AsyncGenerator[pb.GenerateResponse]:
        """The one way to generate, whatever protocol asks for it. Closing it ends the work."""
        clock = asyncio.get_running_loop().time
        ends_s = clock() + budget_s
        admitted = await self._intake.admit(request, ends_s)
        _describe(admitted.record)
        outputs = [self._output(record, admitted, ends_s) for record in records_of(admitted.record)]
        async with aclosing(outputs[0] if len(outputs) == 1 else merged(outputs)) as events:
            async for event in events:
                yield event

    async def decoding(self, model: str, budget_s: float) -> Decoding:
        """How a model that can serve turns ids into text."""
        entry, spec = await self._intake.model(model, budget_s)
        return (await self._intake.tokenizers.get(entry, spec)).decoding

    async def _output(self, record: RequestRecord, admitted: Admitted, ends_s: float) -> Events:
        """One output, from its acceptance to its end."""
        clock = asyncio.get_running_loop().time
        choice = record.sampling.choice
        charge = await self._quotas.charge(record)
        with charge, self._metrics.measured(record) as meter, self._keeper.hold(record, ends_s) as reading:
            charge.live = reading.live
            meter.watch(reading.live)
            await self._keeper.accept(reading.live, admitted.prompt, ends_s - clock())
            meter.accepted()
            log.info("accepted", model=record.model, prompt_tokens=record.prompt_tokens)
            yield pb.GenerateResponse(accepted=_accepted(record))
            output = Output(reading, admitted.codec, self._keeper.stop)
            while (tokens := await output.next()) is not None:
                tokens.choice = choice
                yield pb.GenerateResponse(tokens=tokens)
            finished = output.finished(choice)
            meter.finished(_conclude(finished))
            yield pb.GenerateResponse(finished=finished)

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> AsyncIterator[pb.ResumeResponse]:
        admission.check_request_id(request.request_id)
        await self._check_owner(request.request_id)
        budget_s = self.budget_s(context)
        async with self._keeper.resume(request.request_id, budget_s) as reading:
            live, record = reading.live, reading.live.record
            _describe(record)
            self._metrics.resumed(live)
            entry, spec = await self._intake.model_of(record, budget_s)
            codec = await self._intake.tokenizers.get(entry, spec)
            yield pb.ResumeResponse(accepted=_accepted(record))
            while len(live.token_ids) < request.next_index and not live.end:
                await live.more(len(live.token_ids), reading.reader)
            check_prefix(live, request)
            delivered = Delivered(request.text_chars, request.tool_call_chars)
            output = Output(reading, codec, self._keeper.stop, request.next_index, delivered)
            while (tokens := await output.next()) is not None:
                yield pb.ResumeResponse(tokens=tokens)
            finished = output.finished()
            _conclude(finished)
            yield pb.ResumeResponse(finished=finished)

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        admission.check_request_id(request.request_id)
        await self._check_owner(request.request_id)
        return pb.CancelResponse(cancelled=await self._keeper.cancel(request.request_id))

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        token_ids, _ = await self._tokenized(request, context)
        return pb.TokenizeResponse(token_ids=token_ids)

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        token_ids, spec = await self._tokenized(request, context)
        left_tokens = max(spec.max_context_tokens - len(token_ids), 0)
        return pb.CountTokensResponse(tokens=len(token_ids), left_tokens=left_tokens)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        entry, spec = await self._intake.model(request.model, self.budget_s(context))
        if any(token_id >= spec.vocab_size for token_id in request.token_ids):
            raise InvalidArgument(f"every token id must be below the vocabulary size {spec.vocab_size}")
        codec = await self._intake.tokenizers.get(entry, spec)
        text = await self._intake.tokenizers.run(codec.decode, list(request.token_ids))
        return pb.DetokenizeResponse(text=text)

    async def _tokenized(
        self, request: pb.TokenizeRequest | pb.CountTokensRequest, context: Context
    ) -> tuple[list[int], ModelSpec]:
        admission.check_prompt_form(request)
        entry, spec = await self._intake.model(request.model, self.budget_s(context))
        codec = await self._intake.tokenizers.get(entry, spec)
        return await self._intake.encode(request, codec), spec

    async def _check_owner(self, request_id: str) -> None:
        if tenancy.current().name:
            tenancy.check_owner(request_id, await self._keeper.owner(request_id))

    def budget_s(self, context: Context) -> float:
        """What a call may take."""
        remaining_s = context.time_remaining()
        if remaining_s is None:
            remaining_s = self._settings.default_deadline_s
        return min(remaining_s, self._settings.max_deadline_s)


class Output:
    """What a client reads of a live request: all that came since it read last, in one message."""

    def __init__(
        self,
        reading: Reading,
        codec: TextCodec,
        stop: Callable[[LiveRequest, int], None],
        sent: int = 0,
        delivered: Delivered = NOTHING,
    ) -> None:
        """`sent` tokens, and what is `delivered` of their words, have been sent before.

        `stop` ends the request where its text does: with so many tokens.
        """
        self._live, self._reader = reading
        self._stop = stop
        form = FORMATS.get(self._live.record.tool_parser)
        decoding = codec.decoding_showing(form.markers if form else ())
        self._words = Words(decoding, self._live.record, delivered)
        self._sent = sent
        self._held = self._words.push(self._live.token_ids[:sent])
        self._closed = False

    async def next(self) -> pb.Tokens | None:
        """Waits for tokens; None after the last ones."""
        if self._closed:
            return None
        await self._live.more(self._sent, self._reader)
        first, token_ids = self._sent, self._live.token_ids[self._sent :]
        written, self._held = self._held.add(self._words.push(token_ids)), Written()
        if self._live.end:
            self._closed = True
            written.add(self._words.flush())
        if (ended_at := self._words.ended_at) is not None:
            token_ids = token_ids[: max(ended_at - first, 0)]
            if self._live.stopped_at is None:
                self._stop(self._live, ended_at)
        self._sent += len(token_ids)
        if not (token_ids or written.text or written.calls):
            return None
        return pb.Tokens(
            first_index=first,
            token_ids=token_ids,
            text=written.text,
            logprobs=self._logprobs(first),
            tool_calls=[self._delta(piece) for piece in written.calls],
        )

    def finished(self, choice: int = 0) -> pb.Finished:
        """How the request ended; raises what ended it otherwise."""
        outcome = self._live.outcome()
        called = self._words.has_calls and outcome.reason == common_pb2.FINISH_REASON_STOP
        reason = common_pb2.FINISH_REASON_TOOL_CALLS if called else outcome.reason
        return pb.Finished(reason=reason, stats=outcome.stats, choice=choice)

    def _delta(self, piece: CallPiece) -> pb.ToolCallDelta:
        name = call_id(self._live.record.request_id, piece.index) if piece.name else ""
        return pb.ToolCallDelta(index=piece.index, id=name, name=piece.name, arguments=piece.arguments)

    def _logprobs(self, first: int) -> list[common_pb2.TokenLogprobs]:
        if self._live.record.sampling.logprobs is None:
            return []
        return [self._live.logprobs.get(index, UNKNOWN) for index in range(first, self._sent)]


def check_prefix(live: LiveRequest, request: pb.ResumeRequest) -> None:
    """That the client has what this output begins with. Raises Diverged, or what ended the request before."""
    if len(live.token_ids) < request.next_index and isinstance(live.end, HekatonError):
        raise live.end
    known = live.token_ids[: request.next_index]
    if len(known) < request.next_index or token_crc(known) != request.token_crc:
        raise Diverged(
            f"request {request.request_id} does not begin with the tokens that were delivered: send it again"
        )


def _accepted(record: RequestRecord) -> pb.Accepted:
    return pb.Accepted(
        request_id=record.request_id,
        prompt_tokens=record.prompt_tokens,
        seed=record.sampling.seed,
        slo=convert.slo_to_pb(record.slo),
        deadline=convert.duration(record.deadline_s),
    )


def _describe(record: RequestRecord) -> None:
    """Names the request in this call's logs and span."""
    structlog.contextvars.bind_contextvars(request_id=record.request_id)
    trace.get_current_span().set_attributes(
        {
            telemetry.GEN_AI_OPERATION: "generate_content",
            telemetry.GEN_AI_MODEL: record.model,
            telemetry.GEN_AI_INPUT_TOKENS: record.prompt_tokens,
            telemetry.REQUEST_ID: record.request_id,
        }
    )


def _conclude(finished: pb.Finished) -> str:
    """Names the end in this call's logs and span; its reason."""
    reason = convert.finish_from_pb(finished.reason)
    log.info("finished", reason=reason, tokens=finished.stats.completion_tokens, worker_id=finished.stats.worker_id)
    trace.get_current_span().set_attributes(
        {
            telemetry.GEN_AI_OUTPUT_TOKENS: finished.stats.completion_tokens,
            telemetry.GEN_AI_FINISH_REASONS: [reason],
            telemetry.WORKER_ID: finished.stats.worker_id,
            telemetry.EPOCH: finished.stats.epoch,
        }
    )
    return reason
