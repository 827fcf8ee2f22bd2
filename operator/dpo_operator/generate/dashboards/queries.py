"""PromQL about one DPOJob."""

# Selects the job's series: the operator's carry these labels, the trainer's get them from the PodMonitor.
JOB = 'namespace="$namespace",dpojob="$dpojob"'
# Selects what the operator's own monitor scraped: the operator's series name the namespace of the DPOJob, and so could anybody's.
OPERATOR = 'job="$operator"'
# The operator's series of the job.
OF_JOB = f"{JOB},{OPERATOR}"
# Prometheus' label for the chart's PodMonitor of a release with default names; the chart writes its own.
OPERATOR_MONITOR = "dpo-system/dpo-operator"


def newest(metric: str, by: str = "") -> str:
    """A gauge of rank 0. During a restart the old and the new pod overlap for a moment; one curve is drawn."""
    selector = OF_JOB if metric.startswith("dpojob_") else JOB
    return f"max by ({by}) ({metric}{{{selector}}})" if by else f"max({metric}{{{selector}}})"


def rate(counter: str, by: str = "", selector: str = JOB) -> str:
    """A counter's increase for each second. selector: the series that are added up."""
    total = f"rate({counter}{{{selector}}}[$__rate_interval])"
    return f"sum by ({by}) ({total})" if by else f"sum({total})"


def quantile(share: float, histogram: str, selector: str = JOB) -> str:
    """A quantile over all series that the selector finds."""
    return f"histogram_quantile({share}, {rate(histogram + '_bucket', 'le', selector)})"
