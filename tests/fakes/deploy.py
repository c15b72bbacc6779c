"""What deploy/ asks Prometheus for: the expressions of the alerts and of the dashboard, read by a PromQL parser."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
SCRAPED_BY = ("job", "instance")
"""Labels that Prometheus adds."""


@dataclass(frozen=True)
class Selector:
    """A metric that an expression names, and the labels that it asks for."""

    metric: str
    labels: frozenset[str]


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/hekaton.json").read_text())
    return board


def targets() -> list[dict[str, str]]:
    """Of all panels of the dashboard."""
    return [target for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def expressions() -> list[str]:
    return [alert["expr"] for alert in alerts()] + [target["expr"] for target in targets()]


def selectors(expression: str) -> set[Selector]:
    """Raises ValueError for what is no PromQL."""
    return set(_selectors(promql_parser.parse(expression), frozenset()))


def variables() -> set[Selector]:
    """What the dashboard's variables are filled from."""
    queries = [one["query"]["query"] for one in dashboard()["templating"]["list"]]
    found = [re.fullmatch(r"label_values\((\w+), (\w+)\)", query) for query in queries]
    return {Selector(match[1], frozenset({match[2]})) for match in found if match}


def _selectors(node: promql_parser.Expr, grouped: frozenset[str]) -> Iterator[Selector]:
    """`grouped` are the labels that an aggregation around the node keeps."""
    match node:
        case promql_parser.VectorSelector():
            asked = {matcher.name for matcher in node.matchers.matchers} | grouped
            yield Selector(node.name or "", frozenset(asked - {*SCRAPED_BY}))
        case promql_parser.MatrixSelector():
            yield from _selectors(node.vector_selector, grouped)
        case promql_parser.AggregateExpr():
            kept = frozenset(node.modifier.labels) if node.modifier else frozenset[str]()
            yield from _selectors(node.expr, kept)
        case promql_parser.Call():
            for argument in node.args:
                yield from _selectors(argument, grouped)
        case promql_parser.BinaryExpr():
            yield from _selectors(node.lhs, grouped)
            yield from _selectors(node.rhs, grouped)
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            yield from _selectors(node.expr, grouped)
