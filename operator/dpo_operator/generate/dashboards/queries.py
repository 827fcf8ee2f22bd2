"""PromQL about one DPOJob."""

# Selects the job's series: the operator's carry these labels, the trainer's get them from the PodMonitor.
JOB = 'namespace="$namespace",dpojob="$dpojob"'


def newest(metric: str, by: str = "") -> str:
    """A gauge of rank 0. During a restart the old and the new pod overlap for a moment; one curve is drawn."""
    return f"max by ({by}) ({metric}{{{JOB}}})" if by else f"max({metric}{{{JOB}}})"


def rate(counter: str, by: str = "", selector: str = JOB) -> str:
    """A counter's increase for each second. selector: the series that are added up; all of them when empty."""
    total = f"rate({counter}{f'{{{selector}}}' if selector else ''}[$__rate_interval])"
    return f"sum by ({by}) ({total})" if by else f"sum({total})"


def quantile(share: float, histogram: str, selector: str = JOB) -> str:
    """A quantile over all series that the selector finds."""
    return f"histogram_quantile({share}, {rate(histogram + '_bucket', 'le', selector)})"
