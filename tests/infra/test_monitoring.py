"""Prometheus' files by promtool, which also plays every alert; the dashboard against the names that are exported."""

import json
import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess, run
from typing import Any

import pytest
import ray.dashboard
import yaml

MONITORING = Path(__file__).resolve().parents[2] / "infra" / "monitoring"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "pipeline.json"
ALERTS = MONITORING / "alerts.yaml"
EXPORTED = Path(__file__).with_name("exported_metrics.txt")
PANEL_TYPES = {"timeseries"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not here: apt-get install prometheus"
)


def promtool(*arguments: str | Path) -> CompletedProcess[str]:
    command = ["promtool", *map(str, arguments)]
    return run(command, capture_output=True, text=True, check=False, timeout=120)


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"])


def expressions() -> list[str]:
    """PromQL of all panels, for all runs."""
    return [target["expr"].replace("$run", ".*") for panel in panels() for target in panel["targets"]]


def exported() -> set[str]:
    """Our own names, which tests/pipeline/test_gauges.py finds in a scrape, and those of Ray's node agent."""
    source = Path(ray.dashboard.__file__).parent / "modules" / "reporter" / "reporter_agent.py"
    of_nodes = re.findall(r'^\s+"(node_\w+)": Gauge\(', source.read_text(encoding="utf-8"), re.MULTILINE)
    assert "node_cpu_utilization" in of_nodes
    return {*EXPORTED.read_text(encoding="utf-8").split(), *(f"ray_{name}" for name in of_nodes)}


def unknown(expression: str) -> set[str]:
    """Names of metrics in it that nobody exports."""
    return set(re.findall(r"\b(?:ray|pipeline)_\w+", expression)) - exported()


def test_every_metric_that_is_looked_at_is_exported() -> None:
    for expression in [*expressions(), *(alert["expr"] for alert in alerts())]:
        assert not unknown(expression), expression


def test_a_typo_in_a_metric_is_found() -> None:
    assert unknown("rate(ray_pipeline_train_imagse[5m])") == {"ray_pipeline_train_imagse"}
    assert unknown("ray_node_gpu_utilization") == {"ray_node_gpu_utilization"}


def test_the_dashboard_shows_what_one_wants_to_know() -> None:
    shown = " ".join(expressions())
    for name in (
        "train_images_per_s",
        "train_loss",
        "train_data_share",
        "train_matmul_fraction",
        "stage_images",
        "evaluate_score",
    ):
        assert f"ray_pipeline_{name}" in shown
    assert "ray_node_gpus_utilization" in shown


def test_panels_are_whole_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    datasource = yaml.safe_load((MONITORING / "grafana" / "datasources" / "prometheus.yaml").read_text("utf-8"))
    for panel in panels():
        assert {"id", "type", "title", "gridPos", "targets", "fieldConfig"} <= set(panel), panel["title"]
        assert panel["type"] in PANEL_TYPES
        assert panel["datasource"]["uid"] == datasource["datasources"][0]["uid"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


@needs_promtool
def test_expressions_of_the_dashboard_are_promql(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    found = promtool("check", "rules", tmp_path / "rules.yaml")
    assert found.returncode == 0, found.stderr
    (tmp_path / "rules.yaml").write_text((tmp_path / "rules.yaml").read_text().replace("max by", "max bye"))
    assert promtool("check", "rules", tmp_path / "rules.yaml").returncode != 0


@needs_promtool
def test_prometheus_takes_its_configuration_and_the_alerts() -> None:
    found = promtool("check", "config", MONITORING / "prometheus.yaml")
    assert found.returncode == 0, found.stderr
    assert f"{len(alerts())} rules found" in found.stdout


@needs_promtool
@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("prometheus.yaml", "scrape_interval", "scrape_intervall"),
        ("prometheus.yaml", "refresh_interval: 15s", "refresh_interval: 15"),
        ("alerts.yaml", "expr: changes(", "expr: change("),
        ("alerts.yaml", "annotations:", "anotations:"),
        ("alerts.yaml", "for: 30m", "for: 30 m"),
        ("alerts.yaml", "{{ $labels.run }}", "{{ $label.run }}"),
    ],
)
def test_a_typo_in_prometheus_files_is_refused(tmp_path: Path, file: str, right: str, wrong: str) -> None:
    for path in MONITORING.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong), encoding="utf-8")
    assert promtool("check", "config", tmp_path / "prometheus.yaml").returncode != 0


@needs_promtool
def test_every_alert_fires_when_it_should_and_only_then() -> None:
    """alerts_played.yaml has for each alert series on which it fires, and healthy ones on which none does."""
    played = Path(__file__).with_name("alerts_played.yaml")
    found = promtool("test", "rules", played)
    assert found.returncode == 0, found.stdout + found.stderr
    text = played.read_text(encoding="utf-8")
    assert {alert["alert"] for alert in alerts()} == set(re.findall(r'alertname="(\w+)"', text))


def test_every_alert_has_its_cure() -> None:
    readme = (MONITORING.parent / "README.md").read_text(encoding="utf-8")
    cures = readme.partition("## Alarms and cures")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", cures, re.MULTILINE) == [alert["alert"] for alert in alerts()]
    for alert in alerts():
        assert alert["annotations"]["runbook"] == f"infra/README.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in {"page", "ticket"}
