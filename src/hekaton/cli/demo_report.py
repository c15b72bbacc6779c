"""What the demo shows at its end."""

from dataclasses import dataclass, field
from statistics import fmean

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hekaton.cli.demo_verify import Verdict
from hekaton.client import Tokens
from hekaton.facts import RequestStats, Slo, TurnRecord

TIMELINE_COLUMNS = 54
EXCERPT_CHARS = 200
ANSWER_COLUMNS = 28


@dataclass(slots=True)
class Outcome:
    """One request of the demo, as its client saw it. Times in seconds on the client's clock."""

    id: str
    model: str
    prompt: str
    prompt_ids: tuple[int, ...] = ()
    sent_s: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)
    text: str = ""
    stats: RequestStats | None = None

    def took(self, tokens: Tokens, now_s: float) -> None:
        self.token_ids += tokens.token_ids
        self.token_times_s += [now_s] * len(tokens.token_ids)
        self.text += tokens.text

    @property
    def ttft_s(self) -> float:
        return self.token_times_s[0] - self.sent_s if self.token_times_s else float("inf")

    @property
    def mean_tbt_s(self) -> float:
        times = self.token_times_s
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0

    @property
    def preemptions(self) -> int:
        return self.stats.preemptions if self.stats else 0

    def on_time(self, slo: Slo) -> int:
        """How many tokens met their due time."""
        due_s = self.sent_s + slo.ttft_s
        return sum(time_s <= due_s + index * slo.tbt_s for index, time_s in enumerate(self.token_times_s))

    def excerpt(self) -> str:
        return " ".join(self.text.split())[:EXCERPT_CHARS]


def token_attainment(outcomes: list[Outcome], slo: Slo) -> float:
    """Share of all tokens that met their due time."""
    return sum(one.on_time(slo) for one in outcomes) / max(sum(len(one.token_ids) for one in outcomes), 1)


def left_in_mid_generation(turns: list[TurnRecord]) -> set[str]:
    return {turn.model for turn in turns if turn.preempted_request_ids}


def mean_exposed_switch_s(turns: list[TurnRecord]) -> float:
    return fmean([turn.exposed_switch_s for turn in turns if turn.switched] or [0.0])


def report(outcomes: list[Outcome], turns: list[TurnRecord], slo: Slo, device: str) -> RenderableType:
    """The tables and the timeline. `device` is named with every figure."""
    switches = [turn for turn in turns if turn.switched]
    lines = [
        f"switches: {len(switches)}   mean exposed switch: {mean_exposed_switch_s(turns) * 1000:.0f} ms ({device})",
        f"token attainment: {token_attainment(outcomes, slo):.1%} "
        f"(first token within {slo.ttft_s:g} s, then one every {slo.tbt_s:g} s; {device})",
    ]
    return Group(_requests(outcomes, device), _timeline(turns, device), *lines)


def _requests(outcomes: list[Outcome], device: str) -> Table:
    table = Table(title=f"requests ({device})", box=SIMPLE, pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("answer", no_wrap=True, max_width=ANSWER_COLUMNS)
    for name in ("TTFT", "TBT", "left", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in sorted(outcomes, key=lambda one: (one.model, one.id)):
        figures = (
            f"{one.ttft_s:.2f} s",
            f"{one.mean_tbt_s * 1000:.0f} ms",
            f"{one.preemptions}×",
            f"{len(one.token_ids)}",
        )
        table.add_row(one.model, Text(one.excerpt()), *figures)
    return table


def _timeline(turns: list[TurnRecord], device: str) -> RenderableType:
    """One line a model: where it ran, and · where another did."""
    if not turns:
        return Text("no turns were recorded")
    first_s = min(turn.start_s for turn in turns)
    end_s = max(turn.start_s + turn.duration_s for turn in turns)
    scale = TIMELINE_COLUMNS / max(end_s - first_s, 1e-9)
    models = sorted({turn.model for turn in turns})
    width = max(len(model) for model in models)
    lines = [f"\nturns of the worker over {end_s - first_s:.1f} s ({device})"]
    for model in models:
        cells = ["·"] * TIMELINE_COLUMNS
        for turn in turns:
            if turn.model == model:
                start = int((turn.start_s - first_s) * scale)
                stop = int((turn.start_s + turn.duration_s - first_s) * scale)
                cells[start : max(stop, start + 1)] = "█" * (max(stop, start + 1) - start)
        count = sum(turn.model == model for turn in turns)
        lines.append(f"{model:>{width}} {''.join(cells[:TIMELINE_COLUMNS])} {count}×")
    return Text("\n".join(lines) + "\n")


def as_json(
    outcomes: list[Outcome], turns: list[TurnRecord], verdicts: list[Verdict], slo: Slo, device: str
) -> dict[str, object]:
    return {
        "device": device,
        "token_attainment": token_attainment(outcomes, slo),
        "switches": sum(turn.switched for turn in turns),
        "mean_exposed_switch_s": mean_exposed_switch_s(turns),
        "verified": sum(verdict.equal for verdict in verdicts),
        "ties": sum(verdict.ties for verdict in verdicts),
        "left_in_mid_generation": sorted(left_in_mid_generation(turns)),
        "requests": [
            {
                "id": one.id,
                "model": one.model,
                "text": one.text,
                "tokens": len(one.token_ids),
                "ttft_s": one.ttft_s,
                "mean_tbt_s": one.mean_tbt_s,
                "preemptions": one.preemptions,
            }
            for one in outcomes
        ],
        "turns": [
            {
                "model": turn.model,
                "start_s": turn.start_s,
                "duration_s": turn.duration_s,
                "exposed_switch_s": turn.exposed_switch_s,
                "tokens": turn.tokens,
                "left_unfinished": list(turn.preempted_request_ids),
            }
            for turn in turns
        ],
    }
