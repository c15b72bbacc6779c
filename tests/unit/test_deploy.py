"""deploy/: what can be said of it without running it. That its metrics exist is seen in tests/e2e/test_compose.py."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.compose import ComposeFile
from fakes.deploy import DEPLOY, alerts, dashboard, expressions, selectors, variables

ROOT = Path(__file__).parents[2]
SERVICES = ComposeFile.read(ROOT / "docker-compose.yml").services
ROWS = ["Pool", "SLO attainment", "Switches", "Queues", "Memory", "Processes"]


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_is_promql_and_names_a_metric(expression: str) -> None:
    assert all(one.metric for one in selectors(expression))
    assert selectors(expression)


def test_an_expression_that_is_no_promql_is_noticed() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        selectors("sum(rate(hekaton_workers[5m])")


def test_every_alert_says_what_is_wrong_how_bad_it_is_and_what_to_do() -> None:
    documented = (ROOT / "docs/operations.md").read_text()
    for alert in alerts():
        assert alert["annotations"]["summary"]
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert f"| `{alert['alert']}` |" in documented
    assert documented.count("| `Hekaton") == len(alerts())


def test_prometheus_scrapes_every_service_where_it_tells_its_metrics() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    scraped = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    listening = {
        name: [f"{name}:{service['environment']['HEKATON_METRICS_LISTEN'].split(':')[1]}"]
        for name, service in SERVICES.items()
        if "HEKATON_METRICS_LISTEN" in service.get("environment", {})
    }
    assert scraped == listening
    assert [DEPLOY / "prometheus" / name for name in config["rule_files"]] == [DEPLOY / "prometheus/alerts.yml"]


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    mounts = dict(volume.split(":")[1::-1] for volume in SERVICES["grafana"]["volumes"])
    provisioning = ROOT / mounts["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert _sources(dashboard()) == {source["uid"]}
    (provider,) = yaml.safe_load((provisioning / "dashboards/hekaton.yml").read_text())["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / mounts[provider["options"]["path"]] / Path(home).name).is_file()


def test_the_dashboard_shows_every_subject_and_no_panel_hides_another() -> None:
    panels = dashboard()["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == ROWS
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    assert variables()


def _sources(part: Any) -> set[str]:
    """The uids of all data sources that a piece of the dashboard names."""
    if isinstance(part, list):
        return set().union(*map(_sources, part))
    if not isinstance(part, dict):
        return set()
    named = {part["datasource"]["uid"]} if "datasource" in part else set()
    return named.union(*map(_sources, part.values()))
