"""The dashboard of the operator: jobs, reaction times, reconcile work and connections."""

from dpo_operator.generate.dashboards.panels import Json, Panel, Query, Row, build_dashboard, operator_variable
from dpo_operator.generate.dashboards.queries import OPERATOR, quantile, rate

UID = "dpo-operator"
# Restricts process_* metrics, which every scraped process exports, to the operator.
OURS = f"and on (instance, job) dpojob_operator_build_info{{{OPERATOR}}}"


def dashboard() -> Json:
    """The JSON model."""
    return build_dashboard(
        uid=UID,
        title="DPO / Operator",
        description="All DPOJobs by state, and the operator's own work.",
        variables=[operator_variable()],
        annotations=[],
        rows=[_jobs(), _reaction_times(), _work(), _connections(), _process()],
    )


def _quantiles(histogram: str, selector: str = OPERATOR) -> tuple[Query, Query]:
    """Median and 99th percentile over what was observed lately."""
    return Query(quantile(0.5, histogram, selector), "p50"), Query(quantile(0.99, histogram, selector), "p99")


def _jobs() -> Row:
    return Row(
        "Jobs",
        (
            Panel(
                "Jobs by state",
                "DPOJobs that the operator knows, by the state that `kubectl get dpojob` shows.",
                (Query(f"sum by (state) (dpojob_status_state{{{OPERATOR}}}) > 0", "{{state}}"),),
                decimals=0,
                minimum=0,
                stack=True,
            ),
            Panel(
                "Findings",
                "DPOJobs by what is found about their learning or their data, without what is only worth knowing. Jobs that have ended count "
                "until they are deleted.",
                (
                    Query(
                        f'count by (code) (max by (namespace, dpojob, code) (dpojob_finding{{severity!="Info",{OPERATOR}}})) or vector(0)',
                        "{{code}}",
                    ),
                ),
                decimals=0,
                minimum=0,
                stack=True,
            ),
            Panel(
                "GPU-hours",
                "GPU time of the jobs that are known, over all attempts, from the moment when all pods of one run until they end.",
                (
                    Query(
                        f"sum by (namespace, dpojob) (max by (namespace, dpojob) (dpojob_gpu_seconds_total{{{OPERATOR}}})"
                        f" + max by (namespace, dpojob) (dpojob_running_gpus{{{OPERATOR}}}) * (time() - max by (namespace, dpojob) "
                        f"(dpojob_running_since_timestamp_seconds{{{OPERATOR}}}))"
                        f" or max by (namespace, dpojob) (dpojob_gpu_seconds_total{{{OPERATOR}}})) / 3600",
                        "{{namespace}}/{{dpojob}}",
                    ),
                ),
                minimum=0,
            ),
            Panel(
                "Restarts by reason",
                "Restarts of the last hour. Many of one reason on different jobs point at a node, a network or a storage.",
                (
                    Query(
                        f"sum by (reason) (increase(dpojob_operator_job_restarts_total{{{OPERATOR}}}[1h])) > 0 or vector(0)",
                        "{{reason}}",
                    ),
                ),
                minimum=0,
                stack=True,
            ),
        ),
    )


def _reaction_times() -> Row:
    return Row(
        "Failures",
        (
            Panel(
                "Detection",
                "From the end of a rank's container, by its node's clock, until the status shows what follows. Clocks that "
                "differ show here.",
                _quantiles("dpojob_detection_seconds"),
                unit="s",
                minimum=0,
                width=12,
            ),
            Panel(
                "Recovery",
                "From the decision to restart until all pods of the next attempt run: the old pods' end, a free node, the "
                "image.",
                _quantiles("dpojob_recovery_seconds"),
                unit="s",
                minimum=0,
                width=12,
            ),
        ),
    )


def _work() -> Row:
    reconcile = f'handler="reconcile",{OPERATOR}'
    return Row(
        "Work",
        (
            Panel(
                "Time of a reconcile",
                "One pass over one job, its requests to the API server included.",
                _quantiles("dpojob_operator_handler_seconds", reconcile),
                unit="s",
                minimum=0,
            ),
            Panel(
                "Waiting jobs",
                "Jobs that wait for a worker. Those in the slow lane failed last time, or will be rejected.",
                (Query(f"sum by (lane) (dpojob_operator_queue_depth{{{OPERATOR}}})", "{{lane}}"),),
                decimals=0,
                minimum=0,
            ),
            Panel(
                "Longest wait",
                "How long the first of them has waited.",
                (Query(f"max by (lane) (dpojob_operator_queue_oldest_seconds{{{OPERATOR}}})", "{{lane}}"),),
                unit="s",
                minimum=0,
            ),
            Panel(
                "Errors",
                "Errors for each second, by kind; each is retried after a growing delay. See the log for the job.",
                (
                    Query(
                        f"{rate('dpojob_operator_handler_errors_total', 'error', OPERATOR)} or vector(0)", "{{error}}"
                    ),
                ),
                minimum=0,
            ),
            Panel(
                "Reconciles",
                "Passes for each second by how they ended.",
                (Query(rate("dpojob_operator_handler_seconds_count", "outcome", reconcile), "{{outcome}}"),),
                minimum=0,
                colors={"error": "red", "success": "green"},
            ),
            Panel(
                "Requests",
                "Requests to the API server for each second, watches aside, by status code. 0: no response. 409: another "
                "client wrote first. 429: throttled.",
                (Query(rate("dpojob_operator_api_requests_total", "code", OPERATOR), "{{code}}"),),
                minimum=0,
                stack=True,
            ),
        ),
    )


def _connections() -> Row:
    return Row(
        "Connections",
        (
            Panel(
                "Leader",
                "Replicas that lead. Always 1; 0: no replica reconciles jobs.",
                (Query(f"sum(dpojob_operator_leader{{{OPERATOR}}})", "leaders"),),
                kind="stat",
                width=4,
                decimals=0,
                steps=((None, "red"), (1, "green"), (2, "red")),
            ),
            Panel(
                "Not delivered",
                "DPOJobs that a list shows in a version that the watch has not delivered. More than 0 for long: the watch is stuck.",
                (Query(f"max(dpojob_operator_unobserved_objects{{{OPERATOR}}})", "jobs"),),
                kind="stat",
                width=4,
                decimals=0,
                steps=((None, "green"), (1, "red")),
            ),
            Panel(
                "Unreadable namespaces",
                "Watched namespaces whose DPOJobs could not be listed: a RoleBinding is missing there.",
                (Query(f"max(dpojob_operator_unreadable_namespaces{{{OPERATOR}}})", "namespaces"),),
                kind="stat",
                width=4,
                decimals=0,
                steps=((None, "green"), (1, "red")),
            ),
            Panel(
                "Age of the watches",
                "Time since each resource's watch received data, bookmarks included, which come about every minute. A watch that "
                "stays silent is reopened; if that does not help, the liveness probe fails.",
                (Query(f"max by (resource) (dpojob_operator_watch_age_seconds{{{OPERATOR}}})", "{{resource}}"),),
                unit="s",
                minimum=0,
                width=12,
            ),
        ),
    )


def _process() -> Row:
    return Row(
        "Process",
        (
            Panel(
                "Memory",
                "Of each replica.",
                (Query(f"process_resident_memory_bytes {OURS}", "{{pod}}"),),
                unit="bytes",
                minimum=0,
                width=12,
            ),
            Panel(
                "Processor",
                "Cores that each replica keeps busy.",
                (Query(f"rate(process_cpu_seconds_total[$__rate_interval]) {OURS}", "{{pod}}"),),
                minimum=0,
                width=12,
            ),
        ),
    )
