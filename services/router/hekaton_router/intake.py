"""From a client's request to a record that can be accepted."""

import asyncio
import secrets
import uuid
from dataclasses import dataclass, replace
from functools import partial

from hekaton import jsonschema, telemetry
from hekaton.config import RouterSettings
from hekaton.errors import DeadlineExceeded, InvalidArgument
from hekaton.facts import CatalogEntry, ModelSpec, RequestRecord
from hekaton.store.catalog import Catalog
from hekaton.v1 import inference_pb2 as pb
from hekaton_router import admission, tenancy
from hekaton_router.admission import Prompted
from hekaton_router.models import find, permitted
from hekaton_router.patience import Patience
from hekaton_router.sampling import check_constrainable, decide_sampling
from hekaton_router.tokenization import TextCodec, TokenizerCache
from hekaton_router.tools.asked import ToolUse, messages_of, tool_use
from hekaton_router.tools.formats import FORMATS, detected
from hekaton_router.tools.grammar import demanded
from hekaton_router.view import PoolView

SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class Admitted:
    record: RequestRecord
    prompt: list[int]
    codec: TextCodec


@dataclass(frozen=True, slots=True)
class Intake:
    settings: RouterSettings
    router_id: str
    catalog: Catalog
    view: PoolView
    tokenizers: TokenizerCache
    patience: Patience

    async def admit(self, request: pb.GenerateRequest, ends_s: float) -> Admitted:
        """Checks everything that can be checked before acceptance; each refusal is an error of its own.

        `ends_s` is the deadline on the event loop's clock.
        """
        if request.request_id:
            admission.check_request_id(request.request_id)
        admission.check_prompt_form(request)
        entry, spec = await self.model(request.model, _left_s(ends_s))
        admission.check_pool(entry.name, spec, self.view.devices())
        codec = await self.tokenizers.get(entry, spec)
        use = tool_use(request.chat)
        prompt = await self._prompt(request, codec)
        record = self._record(request, entry, spec, prompt, ends_s)
        if record.sampling.json_schema:
            await self.tokenizers.run(jsonschema.check, record.sampling.json_schema)
        if use.tools:
            record = await self._with_tools(record, use, request, entry, spec, codec)
        return Admitted(record, prompt, codec)

    async def model(self, name: str, budget_s: float) -> tuple[CatalogEntry, ModelSpec]:
        """A model that can serve, by its name or an alias.

        Raises ModelNotFound, ModelNotReady, StoreUnavailable, or PermissionDenied if the caller may not use it.
        """
        entry = await self.patience.run(partial(permitted, self.catalog, name), budget_s)
        return entry, admission.ready_spec(entry)

    async def model_of(self, record: RequestRecord, budget_s: float) -> tuple[CatalogEntry, ModelSpec]:
        """Of a request that was accepted."""
        entry = await self.patience.run(partial(find, self.catalog, record.model), budget_s)
        return entry, admission.ready_spec(entry)

    async def encode(self, request: Prompted, codec: TextCodec) -> list[int]:
        """Ids of a text or a conversation."""
        if request.WhichOneof("prompt") == "text":
            return await self.tokenizers.run(codec.encode, request.text)
        if request.WhichOneof("prompt") == "chat":
            return await self.tokenizers.run(_encode_chat, request.chat, codec)
        raise InvalidArgument("send exactly one prompt: text or chat")

    async def _prompt(self, request: pb.GenerateRequest, codec: TextCodec) -> list[int]:
        if request.HasField("token_ids"):
            return list(request.token_ids.ids)
        return await self.encode(request, codec)

    async def _with_tools(
        self,
        record: RequestRecord,
        use: ToolUse,
        request: pb.GenerateRequest,
        entry: CatalogEntry,
        spec: ModelSpec,
        codec: TextCodec,
    ) -> RequestRecord:
        """The output is read for calls, and follows what the request demands of them."""
        form = FORMATS.get(entry.tool_parser or detected(codec.template.source))
        if form is None:
            raise InvalidArgument(
                f"chat.tools: model {entry.name} writes calls in a way that is not known here: register it with a "
                f"tool_parser ({', '.join(FORMATS)})"
            )
        sampling = record.sampling
        if use.constrained or sampling.json_schema:
            check_constrainable("chat.tool_choice" if use.forced else "chat.tools", request.sampling, spec)
            grammar = await self.tokenizers.run(demanded, form, use, codec, sampling.json_schema)
            sampling = replace(sampling, grammar=grammar)
        return replace(record, sampling=sampling, tool_parser=form.name, parallel_tool_calls=use.several)

    def _record(
        self, request: pb.GenerateRequest, entry: CatalogEntry, spec: ModelSpec, prompt: list[int], ends_s: float
    ) -> RequestRecord:
        admission.check_prompt(prompt, spec)
        sampling = decide_sampling(
            request.sampling,
            spec,
            prompt_tokens=len(prompt),
            default_max_tokens=self.settings.default_max_tokens,
            drawn_seed=secrets.randbits(SEED_BITS),
        )
        admission.check_room(entry.name, spec, len(prompt) + sampling.max_tokens, self.view.devices())
        slo = admission.decide_slo(request.slo, entry.slo)
        tenant = tenancy.current().name
        admission.check_promise(entry.name, slo, self.view.promise.of(entry.name, tenant))
        return RequestRecord(
            request_id=request.request_id or uuid.uuid4().hex,
            router_id=self.router_id,
            model=entry.name,
            prompt_tokens=len(prompt),
            sampling=sampling,
            slo=slo,
            deadline_s=_left_s(ends_s),
            tenant=tenant,
            trace_context=telemetry.current_traceparent(),
            choices=request.sampling.n if request.sampling.HasField("n") else 1,
            resume_window_s=admission.decide_resume_window_s(request, self.settings.max_resume_window_s),
        )


def _encode_chat(chat: pb.ChatPrompt, codec: TextCodec) -> list[int]:
    return codec.encode_chat(messages_of(chat), tool_use(chat).shown())


def _left_s(ends_s: float) -> float:
    left_s = ends_s - asyncio.get_running_loop().time()
    if left_s <= 0:
        raise DeadlineExceeded("the deadline passed before the request was accepted: allow more time")
    return left_s
