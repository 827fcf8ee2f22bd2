"""Bounds on lists as a whole: each entry within its own bound, a DPOJob could still have more than a megabyte."""

from dpo_operator.api.rules.rule import Rule

# Characters. The operator, the API server and etcd hold every DPOJob.
MAX_VALUES = 16384

SIZE_RULES: tuple[Rule, ...] = (
    Rule(
        "data.filters.where",
        f"self.data.filters.where.map(c, c.values.map(v, v.size()).sum()).sum() <= {MAX_VALUES}",
        lambda s: sum(len(value) for c in s.data.filters.where for value in c.values) <= MAX_VALUES,
        f"at most {MAX_VALUES:,} characters of values in all; filter the data before the job instead",
    ),
    Rule(
        "pod.env",
        f"self.pod.env.map(e, e.value.size()).sum() <= {MAX_VALUES}",
        lambda s: sum(len(e.value) for e in s.pod.env) <= MAX_VALUES,
        f"at most {MAX_VALUES:,} characters of values in all",
    ),
)
