"""Bounds on lists as a whole: each entry within its own bound, a DPOJob could still have more than a megabyte."""

from dpo_operator.api.rules.rule import Rule

# Characters. The operator, the API server and etcd hold every DPOJob.
MAX_VALUES = 16384
MAX_SOURCES = 8192
MAX_REASONS = 4096

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
    Rule(
        "data.mixture",
        f"self.data.mixture.map(d, d.source.size()).sum() <= {MAX_SOURCES}",
        lambda s: sum(len(dataset.source) for dataset in s.data.mixture) <= MAX_SOURCES,
        f"at most {MAX_SOURCES:,} characters of sources in all; a folder of files counts as one source",
    ),
    Rule(
        "failurePolicy.rules",
        f"self.failurePolicy.rules.map(r, r.reasons.map(t, t.size()).sum()).sum() <= {MAX_REASONS}",
        lambda s: sum(len(reason) for rule in s.failure_policy.rules for reason in rule.reasons) <= MAX_REASONS,
        f"at most {MAX_REASONS:,} characters of reasons in all",
    ),
)
