"""What the router measures: every request, from its acceptance to its end, whatever protocol it came by."""

import asyncio
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from hekaton.errors import Cancelled, HekatonError, ResumedElsewhere
from hekaton.facts import RequestRecord
from hekaton.metrics import MODEL, Gauges, ModelNames, counter, gauge, gauges, histogram
from hekaton.rpc import convert
from hekaton_router.live import LiveRequest, LiveRequests
from hekaton_router.view import PoolView


class RouterMetrics:
    def __init__(self, live: LiveRequests, view: PoolView) -> None:
        self.registry = CollectorRegistry()
        self.name = ModelNames()
        self._live = live
        self._view = view
        made = self.registry
        self.prompt_tokens = counter(made, "prompt_tokens", "Tokens of accepted prompts.", MODEL)
        self.generation_tokens = counter(made, "generation_tokens", "Tokens that came from workers.", MODEL)
        self.on_time = counter(made, "tokens_on_time", "Those that came by their SLO's time.", MODEL)
        self.ttft = histogram(made, "time_to_first_token_seconds", "Acceptance to first token.", MODEL)
        self.gap = histogram(made, "inter_token_latency_seconds", "Delivery of tokens to the next.", MODEL)
        self.e2e = histogram(made, "e2e_request_latency_seconds", "Acceptance to a good end.", MODEL)
        self.success = counter(made, "request_success", "Requests that ended well.", MODEL, "finished_reason")
        self.failure = counter(made, "request_failure", "Requests that ended otherwise.", MODEL, "reason")
        made.register(Gauges(self._gauges))
        self._tokens: Tally[str] = Tally()
        self._punctual: Tally[str] = Tally()

    @contextmanager
    def measured(self, record: RequestRecord) -> Iterator["Meter"]:
        """Around the life of one request; its end is what the block ends with."""
        meter = Meter(self, record)
        try:
            yield meter
        except (asyncio.CancelledError, GeneratorExit, ResumedElsewhere):
            meter.left()
            raise
        except HekatonError as error:
            meter.failed(error.reason)
            raise
        except Exception:
            meter.failed(HekatonError.reason)
            raise

    def resumed(self, live: LiveRequest) -> None:
        """Counts here what another router has accepted and does not read any more."""
        if not live.metered and not live.end:
            Meter(self, live.record).take_over(live)

    def came(self, model: str, tokens: int, punctual: int) -> None:
        self._tokens[model] += tokens
        self._punctual[model] += punctual

    def _gauges(self) -> Iterable[Metric]:
        running: Tally[str] = Tally()
        waiting: Tally[str] = Tally()
        for one in self._live:
            name, is_placed = self.name(one.record.model), one.epoch > 0
            running[name] += is_placed
            waiting[name] += not is_placed
        ratios = {model: self._punctual[model] / tokens for model, tokens in list(self._tokens.items()) if tokens}
        yield gauges("num_requests_running", "Requests that a worker holds.", MODEL, running)
        yield gauges("num_requests_waiting", "Requests that no worker holds yet.", MODEL, waiting)
        yield gauges("slo_attainment_ratio", "Tokens on time ÷ tokens, since the router's start.", MODEL, ratios)
        yield gauge("workers", "Live workers.", len(self._view.workers))


class Meter:
    """One request's measures."""

    def __init__(self, metrics: RouterMetrics, record: RequestRecord) -> None:
        self.model = metrics.name(record.model)
        self._metrics = metrics
        self._record = record
        self._clock = asyncio.get_running_loop().time
        self._accepted_s = 0.0
        self._last_s: float | None = None
        self._tokens = 0
        self._live: LiveRequest | None = None
        self._counted = False
        # Looking a series up costs as much as a detokenisation; a request does it once.
        self._came = metrics.generation_tokens.labels(self.model)
        self._on_time = metrics.on_time.labels(self.model)
        self._gap = metrics.gap.labels(self.model)

    def accepted(self) -> None:
        self._accepted_s = self._clock()
        self._metrics.prompt_tokens.labels(self.model).inc(self._record.prompt_tokens)

    def tokens(self, count: int) -> None:
        """So many more came from the worker now."""
        now_s, slo = self._clock(), self._record.slo
        if self._last_s is None:
            self._metrics.ttft.labels(self.model).observe(now_s - self._accepted_s)
        else:
            self._gap.observe(now_s - self._last_s)
        late_s = now_s - self._accepted_s - slo.ttft_s
        punctual = sum(late_s <= index * slo.tbt_s for index in range(self._tokens, self._tokens + count))
        self._came.inc(count)
        self._on_time.inc(punctual)
        self._metrics.came(self.model, count, punctual)
        self._last_s = now_s
        self._tokens += count

    def watch(self, live: LiveRequest) -> None:
        self._live = live
        live.metered = True
        live.on_tokens = self.tokens

    def take_over(self, live: LiveRequest) -> None:
        self.watch(live)
        self._accepted_s, self._last_s, self._tokens = live.accepted_s, self._clock(), len(live.token_ids)
        live.on_end = self._ended

    def left(self) -> None:
        """Its client has gone. What is kept goes on, and is counted when it ends."""
        live = self._live
        if live is None or not live.accepted or not self._record.resume_window_s:
            self.failed(Cancelled.reason)
        elif live.end:
            self._ended()
        else:
            live.on_end = self._ended

    def _ended(self) -> None:
        assert self._live is not None
        try:
            finished = self._live.outcome()
        except ResumedElsewhere:
            return  # Counted where it goes on.
        except HekatonError as error:
            self.failed(error.reason)
        else:
            self.finished(convert.finish_from_pb(finished.reason))

    def failed(self, reason: str) -> None:
        if not self._counted:
            self._counted = True
            self._metrics.failure.labels(self.model, reason).inc()

    def finished(self, reason: str) -> None:
        if self._counted:
            return
        self._counted = True
        self._metrics.e2e.labels(self.model).observe(self._clock() - self._accepted_s)
        self._metrics.success.labels(self.model, reason).inc()
