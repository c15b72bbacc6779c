"""A workload made to fit the pool that it is sent to."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hekaton.client import Model
from hekaton.errors import InvalidArgument, ModelNotFound
from hekaton.facts import ModelState, Slo
from hekaton.sim.workload import Arrival


def ready(models: Sequence[Model], wanted: Sequence[str]) -> dict[str, Model]:
    """Those that are asked for, or all that can be. Raises ModelNotFound, InvalidArgument if there is none."""
    there = {model.name: model for model in models if model.state is ModelState.READY}
    unknown = sorted(set(wanted) - there.keys())
    if unknown:
        known = ", ".join(sorted(there)) or "none"
        raise ModelNotFound(f"the pool does not serve {', '.join(unknown[:5])}; it serves {known}")
    if not there:
        raise InvalidArgument("the pool serves no model: add one with `hekaton models add`")
    return {name: there[name] for name in wanted} if wanted else there


def fitted(arrivals: Sequence[Arrival], models: Mapping[str, Model]) -> tuple[list[Arrival], int]:
    """Requests that their models' contexts can hold, and how many were cut for it."""
    fitting = [_fitted(arrival, models[arrival.model]) for arrival in arrivals]
    return fitting, sum(one is not arrival for one, arrival in zip(fitting, arrivals, strict=True))


def slos(
    models: Mapping[str, Model], ttft_s: float | None, tbt_s: float | None, own: Mapping[str, Slo], scale: float
) -> dict[str, Slo]:
    """By model: its own here, else what is given for all, else what it was registered with; stretched by `scale`."""
    return {name: _slo(model, ttft_s, tbt_s, own.get(name), scale) for name, model in models.items()}


def parse_slos(given: Sequence[str]) -> dict[str, Slo]:
    """NAME=TTFT:TBT, both in seconds. Raises InvalidArgument."""
    return dict(_parsed(text) for text in given)


def _fitted(arrival: Arrival, model: Model) -> Arrival:
    context = model.spec.max_context_tokens if model.spec else 0
    if not context or arrival.input_tokens + arrival.output_tokens <= context:
        return arrival
    outputs = min(arrival.output_tokens, max(context - arrival.input_tokens, context // 2))
    return replace(arrival, input_tokens=min(arrival.input_tokens, context - outputs), output_tokens=outputs)


def _slo(model: Model, ttft_s: float | None, tbt_s: float | None, own: Slo | None, scale: float) -> Slo:
    chosen = own or Slo(ttft_s or model.slo.ttft_s, tbt_s or model.slo.tbt_s)
    return Slo(chosen.ttft_s * scale, chosen.tbt_s * scale)


def _parsed(text: str) -> tuple[str, Slo]:
    name, _, seconds = text.partition("=")
    ttft, _, tbt = seconds.partition(":")
    try:
        slo = Slo(float(ttft), float(tbt))
    except ValueError:
        slo = Slo(0.0, 0.0)
    if not (name and slo.ttft_s > 0 and slo.tbt_s > 0):
        raise InvalidArgument(f"{text!r} is not NAME=TTFT:TBT in seconds, such as chat=2:0.05")
    return name, slo
