"""Where requests come in and leave: every submitted request ends exactly once, whatever happens to it."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from hekaton.engine.interface import Engine
from hekaton.engine.live import LiveRequest
from hekaton.engine.messages import AddModel, Cancel, Ended, Event, HandOver, Submit
from hekaton.errors import HekatonError, InvalidArgument, ModelNotFound, ResourceExhausted
from hekaton.facts import ModelSpec, Parcel
from hekaton.policy.demands import DemandTable
from hekaton.policy.fairness import set_yielding

REMEMBERED_ENDS = 10_000
KV_BLOCK_TOKENS = 16


@dataclass(slots=True)
class Travels:
    """What became of KV that was away."""

    sent: int = 0
    received: int = 0
    lost: int = 0
    """It could not be written or used: computed again."""
    moved_bytes: Counter[str] = field(default_factory=Counter)
    """"out" to the host and "in" from there, "sent" and "received" in parcels."""


class Desk:
    """The models that an engine knows and its live requests, in order of arrival here."""

    def __init__(self, engine: Engine, emit: Callable[[Event], None]) -> None:
        self._engine = engine
        self._emit = emit
        self.specs: dict[str, ModelSpec] = {}
        self.live: dict[str, LiveRequest] = {}
        self.demands = DemandTable()
        self.has_ended = False
        """A request has ended since the last `take_ended`."""
        self.travels = Travels()
        self._yielding: frozenset[str] = frozenset()
        self._leaving: dict[tuple[str, int], LiveRequest] = {}
        """By id and epoch: their KV is being written to a parcel."""
        self._broken: dict[str, HekatonError] = {}
        self._ended_epochs: OrderedDict[str, int] = OrderedDict()

    def models(self) -> set[str]:
        """Models with live requests."""
        return {request.model for request in self.live.values()}

    def add_model(self, command: AddModel) -> None:
        """Makes a model known. One that the engine refuses is remembered with the reason, for its requests."""
        self._broken.pop(command.name, None)
        try:
            self._engine.add_model(command.name, command.spec, command.source, command.costs)
        except HekatonError as error:
            self._broken[command.name] = error
        else:
            self.specs[command.name] = command.spec

    def remove_model(self, name: str) -> bool:
        """True if the engine knows the model."""
        self._broken.pop(name, None)
        return self.specs.pop(name, None) is not None

    def submit(self, command: Submit, now_s: float) -> None:
        """Takes a request. One that is known with this epoch or a later one is ignored, an older epoch is replaced."""
        known = self.live.get(command.request_id)
        newest = known.epoch if known else self._ended_epochs.get(command.request_id, -1)
        if command.epoch <= newest:
            return
        if known:
            self._forget(known)
        try:
            request = self._admit(command, now_s)
        except HekatonError as error:
            self._end(_refused(command, error))
            return
        if command.parcel:
            self._import(request, command.parcel)
        self.live[request.request_id] = request
        self.demands.touch(request.model)
        self.finish_if_complete(request)

    def set_yielding(self, tenants: frozenset[str]) -> bool:
        """The requests of these tenants yield, those of others do not. True if that changes who goes before whom."""
        self._yielding = tenants
        return set_yielding(tenants, self.live.values(), self.demands)

    def cancel(self, command: Cancel) -> None:
        request = self.live.get(command.request_id)
        if request and request.epoch == command.epoch:
            self._close(request, Ended(request.request_id, request.epoch, *_counts(request), cancelled=True))

    def finish_if_complete(self, request: LiveRequest) -> None:
        if request.finish and self.live.get(request.request_id) is request:
            self._close(request, Ended(request.request_id, request.epoch, *_counts(request), finish=request.finish))

    def hand_over(self, request: LiveRequest) -> None:
        """Lets a live request go on elsewhere: its last message comes when its KV has left."""
        if self.live.get(request.request_id) is not request:
            return
        known = request.known(request.context)
        if known and self._engine.export_kv(request.request_id, request.epoch, request.model, known):
            self._leaving[request.request_id, request.epoch] = request
            self._forget(request)
            self._remember(request.request_id, request.epoch)
        else:
            self._close(request, _handed_over(request, None))

    def exported(self) -> None:
        """Ends those whose KV has left."""
        for export in self._engine.finished_exports():
            request = self._leaving.pop((export.request_id, export.epoch))
            self.travels.sent += export.parcel is not None
            self.travels.lost += export.parcel is None
            self.travels.moved_bytes["sent"] += export.parcel.nbytes if export.parcel else 0
            self._end(_handed_over(request, export.parcel))

    def leave(self, command: HandOver) -> None:
        request = self.live.get(command.request_id)
        if request and request.epoch == command.epoch:
            self.hand_over(request)

    def fail(self, request: LiveRequest, error: HekatonError) -> None:
        self._fail(request, error.code.value[0], error.reason, error.message)

    def fail_model(self, model: str, code: int, reason: str, message: str) -> None:
        """Fails every live request of a model."""
        for request in [one for one in self.live.values() if one.model == model]:
            self._fail(request, code, reason, message)

    def refuse_before(self, arrival_s: float) -> None:
        """Refuses those that came before and have not begun: nobody has any KV or token of them."""
        for request in [one for one in self.live.values() if one.arrival_s < arrival_s]:
            if not (request.produced or request.computed or request.host_tokens or request.fetching):
                self.fail(request, ResourceExhausted("no worker began this request in time: the pool is too busy"))

    def take_ended(self) -> bool:
        ended, self.has_ended = self.has_ended, False
        return ended

    def check_integrity(self) -> None:
        """Raises AssertionError if the books of requests or engine do not balance. The engine's are read when idle."""
        for request in self.live.values():
            if not 0 <= request.computed <= min(request.kv_tokens, request.total):
                raise AssertionError(f"request {request.request_id} has more computed tokens than KV or tokens")
            if request.host_tokens and (request.computed or bool(request.kv_tokens) != request.fetching):
                raise AssertionError(f"request {request.request_id} has KV on the device and on the host")
        if not self.live:
            self._engine.check_integrity()

    def _admit(self, command: Submit, now_s: float) -> LiveRequest:
        spec = self.specs.get(command.model)
        if spec is None:
            raise self._broken.get(command.model) or ModelNotFound(f"model {command.model} is not known to this worker")
        prompt = len(command.prompt)
        if not 0 < prompt < spec.max_context_tokens:
            raise InvalidArgument(
                f"a prompt of {prompt} tokens; model {command.model} takes 1 to {spec.max_context_tokens - 1}"
            )
        if not all(0 <= token < spec.vocab_size for token in command.prompt):
            raise InvalidArgument(f"token ids of model {command.model} are 0 to {spec.vocab_size - 1}")
        request = LiveRequest.of(command, spec.max_context_tokens, now_s)
        request.yields = command.tenant in self._yielding
        blocks = -(-(prompt + request.limit) // KV_BLOCK_TOKENS)
        needed = spec.weight_bytes + blocks * KV_BLOCK_TOKENS * spec.kv_bytes_per_token
        if needed > self._engine.device_memory_bytes:
            raise InvalidArgument(
                f"{prompt} prompt and {request.limit} new tokens of {command.model} need {needed} bytes with the "
                f"weights; the device has {self._engine.device_memory_bytes}: ask for fewer tokens"
            )
        return request

    def _fail(self, request: LiveRequest, code: int, reason: str, message: str) -> None:
        counts = _counts(request)
        ended = Ended(request.request_id, request.epoch, *counts, error_code=code, error_reason=reason, error=message)
        self._close(request, ended)

    def _close(self, request: LiveRequest, ended: Ended) -> None:
        self._forget(request)
        self._end(ended)

    def _forget(self, request: LiveRequest) -> None:
        del self.live[request.request_id]
        self._engine.drop_kv(request.request_id)
        self.demands.touch(request.model)
        self.has_ended = True

    def _end(self, ended: Ended) -> None:
        self._remember(ended.request_id, ended.epoch)
        self._emit(ended)

    def _remember(self, request_id: str, epoch: int) -> None:
        self._ended_epochs[request_id] = max(epoch, self._ended_epochs.get(request_id, epoch))
        self._ended_epochs.move_to_end(request_id)
        if len(self._ended_epochs) > REMEMBERED_ENDS:
            self._ended_epochs.popitem(last=False)

    def _import(self, request: LiveRequest, parcel: Parcel) -> None:
        known = request.known(request.total)
        request.host_tokens = self._engine.import_kv(request.request_id, request.model, parcel, known)
        self.travels.received += request.host_tokens > 0
        self.travels.lost += not request.host_tokens
        self.travels.moved_bytes["received"] += parcel.nbytes if request.host_tokens else 0


def _counts(request: LiveRequest) -> tuple[int, int]:
    return len(request.produced), request.preemptions


def _handed_over(request: LiveRequest, parcel: Parcel | None) -> Ended:
    return Ended(request.request_id, request.epoch, *_counts(request), handed_over=True, parcel=parcel)


def _refused(command: Submit, error: HekatonError) -> Ended:
    return Ended(
        command.request_id,
        command.epoch,
        len(command.produced),
        0,
        error_code=error.code.value[0],
        error_reason=error.reason,
        error=error.message,
    )
