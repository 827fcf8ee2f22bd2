"""Grafana dashboards as code: plain dictionaries, written to the chart by `python -m dpo_operator.generate`."""

from dpo_operator.generate.dashboards import fleet, job
from dpo_operator.generate.dashboards.panels import Json, expressions
from dpo_operator.generate.dashboards.queries import OPERATOR_MONITOR


def dashboard_queries(namespace: str, name: str, *, interval: str = "1m") -> list[str]:
    """PromQL of every panel of the job dashboard for one DPOJob, with Grafana's variables filled in.

    interval: a Prometheus duration, in place of $__rate_interval; at least four times the scrape interval.
    """
    return [fill_in(query, namespace, name, interval) for query in expressions(job.dashboard())]


def operator_queries(*, interval: str = "1m") -> list[str]:
    """PromQL of every panel of the operator's dashboard; an interval as above."""
    return [fill_in(query, "", "", interval) for query in expressions(fleet.dashboard())]


def fill_in(query: str, namespace: str, name: str, interval: str) -> str:
    """Replace Grafana's variables as Grafana does."""
    values = {
        "$operator": OPERATOR_MONITOR,
        "$namespace": namespace,
        "$dpojob": name,
        "$__rate_interval": interval,
        "$__interval": interval,
    }
    for variable, value in values.items():
        query = query.replace(variable, value)
    return query


__all__ = ["Json", "dashboard_queries", "fill_in", "operator_queries"]
