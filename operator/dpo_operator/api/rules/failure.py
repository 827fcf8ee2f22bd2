"""Rules over the fields of the failure policy."""

from dpo_operator.api.rules.rule import Rule

FAILURE_RULES: tuple[Rule, ...] = (
    Rule(
        "failurePolicy.maxBackoffSeconds",
        "self.failurePolicy.maxBackoffSeconds >= self.failurePolicy.backoffSeconds",
        lambda s: s.failure_policy.max_backoff_seconds >= s.failure_policy.backoff_seconds,
        "must be at least backoffSeconds",
    ),
    Rule(
        "failurePolicy.rules",
        "self.failurePolicy.rules.all(r, r.exitCodes.size() > 0 || r.reasons.size() > 0 || has(r.messageContains))",
        lambda s: all(r.exit_codes or r.reasons or r.message_contains for r in s.failure_policy.rules),
        "every rule needs exitCodes, reasons or messageContains",
    ),
)
