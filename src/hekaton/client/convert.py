"""The client's types from and to protobuf."""

import json

from hekaton.client.types import (
    Accepted,
    Chat,
    Finished,
    GenerationEvent,
    Message,
    Model,
    Pool,
    Prompt,
    SamplingOptions,
    Tokens,
    ToolCallDelta,
    ToolChoice,
    Worker,
)
from hekaton.errors import InvalidArgument
from hekaton.facts import ModelState, Slo, SloClass
from hekaton.rpc import convert
from hekaton.v1 import common_pb2, inference_pb2, models_pb2, pool_pb2

UNSET = Slo(0.0, 0.0)
MODES = {
    ToolChoice.AUTO: inference_pb2.TOOL_CHOICE_MODE_AUTO,
    ToolChoice.NONE: inference_pb2.TOOL_CHOICE_MODE_NONE,
    ToolChoice.REQUIRED: inference_pb2.TOOL_CHOICE_MODE_REQUIRED,
}


def sampling_to_pb(options: SamplingOptions) -> common_pb2.Sampling:
    return common_pb2.Sampling(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        stop_token_ids=options.stop_token_ids,
        ignore_eos=options.ignore_eos,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logit_bias=options.logit_bias,
        stop=options.stop,
        min_tokens=options.min_tokens,
        logprobs=options.logprobs,
        n=options.n,
        json_schema=None if options.json_schema is None else json.dumps(options.json_schema),
    )


def slo_to_pb(slo: Slo | SloClass) -> common_pb2.Slo:
    if isinstance(slo, SloClass):
        return common_pb2.Slo(slo_class=convert.SLO_CLASS_TO_PB[slo])
    return convert.slo_to_pb(slo)


def set_prompt(
    request: inference_pb2.GenerateRequest | inference_pb2.TokenizeRequest | inference_pb2.CountTokensRequest,
    prompt: Prompt,
) -> None:
    """Text, a chat, or (for generation) token ids. Raises InvalidArgument for a mixture."""
    if isinstance(prompt, str):
        request.text = prompt
        return
    if isinstance(prompt, Chat):
        request.chat.CopyFrom(chat_to_pb(prompt))
        return
    messages = [part for part in prompt if isinstance(part, Message)]
    if messages and len(messages) < len(prompt):
        raise InvalidArgument("a prompt is text, messages or token ids: send one of these alone")
    if messages or not isinstance(request, inference_pb2.GenerateRequest):
        request.chat.CopyFrom(chat_to_pb(Chat(messages)))
        return
    ids = [part for part in prompt if not isinstance(part, Message)]
    request.token_ids.CopyFrom(inference_pb2.TokenIds(ids=ids))


def chat_to_pb(chat: Chat) -> inference_pb2.ChatPrompt:
    tools = [
        inference_pb2.Tool(
            name=tool.name,
            description=tool.description,
            parameters="" if tool.parameters is None else json.dumps(tool.parameters),
            strict=tool.strict,
        )
        for tool in chat.tools
    ]
    return inference_pb2.ChatPrompt(
        messages=map(_message, chat.messages),
        tools=tools,
        tool_choice=None if chat.tool_choice is None else _choice(chat.tool_choice),
        parallel_tool_calls=chat.parallel_tool_calls,
    )


def _message(message: Message) -> inference_pb2.ChatMessage:
    return inference_pb2.ChatMessage(
        role=message.role,
        content=message.content,
        tool_calls=[
            inference_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in message.tool_calls
        ],
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _choice(choice: ToolChoice | str) -> inference_pb2.ToolChoice:
    if isinstance(choice, ToolChoice):
        return inference_pb2.ToolChoice(mode=MODES[choice])
    return inference_pb2.ToolChoice(name=choice)


def event_from_pb(response: inference_pb2.GenerateResponse | inference_pb2.ResumeResponse) -> GenerationEvent:
    kind = response.WhichOneof("event")
    if kind == "accepted":
        accepted = response.accepted
        slo = convert.slo_from_pb(accepted.slo, UNSET)
        return Accepted(accepted.request_id, accepted.prompt_tokens, accepted.seed, slo)
    if kind == "tokens":
        tokens = response.tokens
        logprobs = tuple(convert.logprobs_from_pb(one) for one in tokens.logprobs)
        calls = tuple(ToolCallDelta(one.index, one.id, one.name, one.arguments) for one in tokens.tool_calls)
        return Tokens(tokens.first_index, tuple(tokens.token_ids), tokens.text, tokens.choice, logprobs, calls)
    finished = response.finished
    return Finished(convert.finish_from_pb(finished.reason), convert.stats_from_pb(finished.stats), finished.choice)


def model_from_pb(model: models_pb2.Model) -> Model:
    return Model(
        name=model.name,
        source=model.source,
        state=convert.STATE_FROM_PB.get(model.state, ModelState.FAILED),
        slo=convert.slo_from_pb(model.slo, UNSET),
        spec=convert.spec_from_pb(model.spec) if model.HasField("spec") else None,
        error=model.error,
        resident_on=tuple(model.resident_worker_ids),
        running_on=tuple(model.running_worker_ids),
        profiles=tuple(convert.profile_from_pb(one) for one in model.profiles),
        aliases=tuple(model.aliases),
        created=model.created.seconds,
        pinned=model.pinned,
        tool_parser=model.tool_parser,
    )


def pool_from_pb(pool: pool_pb2.Pool) -> Pool:
    return Pool(tuple(_worker(worker) for worker in pool.workers), pool.queued_requests, pool.leader_term)


def _worker(worker: pool_pb2.WorkerStatus) -> Worker:
    return Worker(
        worker_id=worker.worker_id,
        address=worker.address,
        device=worker.device,
        device_memory_bytes=worker.device_memory_bytes,
        weights_bytes=worker.weights_bytes,
        kv_bytes=worker.kv_bytes,
        running_model=worker.running_model,
        resident_models=tuple(worker.resident_models),
        loading_models=tuple(worker.loading_models),
        requests_running=worker.requests_running,
        requests_waiting=worker.requests_waiting,
        switches=worker.switches,
        tokens=worker.tokens,
        draining=worker.draining,
        host_kv_bytes=worker.host_kv_bytes,
        host_kv_memory_bytes=worker.host_kv_memory_bytes,
    )
