"""The job dashboard's rows about what the model learns."""

from dpo_operator.generate.dashboards.panels import Color, Panel, Query, Row
from dpo_operator.generate.dashboards.queries import newest

_RESPONSES: dict[str, Color] = {"chosen": "green", "rejected": "red"}
_SPLITS: dict[str, Color] = {"train": "blue", "eval": "orange"}


def _both(name: str) -> tuple[Query, Query]:
    """A gauge of training and evaluation."""
    return Query(newest(f"dpo_train_{name}"), "train"), Query(newest(f"dpo_eval_{name}"), "eval")


def preference() -> Row:
    """Does it prefer what it should."""
    return Row(
        "Preference",
        (
            Panel(
                "Loss",
                "Start is the loss of a policy that equals its reference: ln 2 = 0.693 for dpo; methods without a reference have none. "
                "Falling training loss with rising evaluation loss is overfitting; a flat line at the start is not learning.",
                (
                    Query(newest("dpo_train_loss"), "train"),
                    Query(newest("dpo_eval_loss"), "eval"),
                    Query(newest("dpo_train_initial_loss"), "start"),
                ),
                decimals=3,
                colors={"train": "blue", "eval": "orange", "start": "text"},
            ),
            Panel(
                "Reward margin",
                "Mean reward of chosen minus rejected answers. It should rise (from 0 with a reference) and level off; training far above "
                "evaluation is overfitting. earlyStopping watches the evaluation's.",
                (Query(newest("dpo_train_reward_margin"), "train"), Query(newest("dpo_eval_reward_margin"), "eval")),
                decimals=3,
                colors=_SPLITS,
            ),
            Panel(
                "Reward accuracy",
                "Share of pairs whose chosen answer has the higher reward. With a reference 0 before the first step, because ties count as "
                "wrong; 0.5 is chance; above 0.99 the data teaches nothing more. It counts signs: where the reward margin is near 0 it says nothing.",
                (
                    Query(newest("dpo_train_reward_accuracy_ratio"), "train"),
                    Query(newest("dpo_eval_reward_accuracy_ratio"), "eval"),
                ),
                unit="percentunit",
                minimum=0,
                maximum=1,
                steps=((None, "blue"), (0.5, "orange")),
                line=True,
                colors=_SPLITS,
            ),
            Panel(
                "Rewards",
                "Beta times what the method compares: the log-ratio of policy to reference, or the log-probability per token for orpo and "
                "simpo. The gap between the two is what is learned; both falling is usual, but chosen falling far means that good answers "
                "become unlikely too.",
                (Query(newest("dpo_train_reward", by="response"), "{{response}}"),),
                decimals=3,
                colors=_RESPONSES,
            ),
            Panel(
                "Evaluation rewards",
                "The same rewards on held-out pairs. No data without data.eval or data.evalFraction.",
                (Query(newest("dpo_eval_reward", by="response"), "{{response}}"),),
                decimals=3,
                colors=_RESPONSES,
            ),
            Panel(
                "Margin before the first step",
                "0 when the policy starts as its own reference; anything else means that the two are not the same model. No data for methods "
                "without a reference.",
                (Query(newest("dpo_train_initial_margin")),),
                decimals=4,
                kind="stat",
                steps=((None, "red"), (-0.01, "green"), (0.01, "red")),
            ),
        ),
    )


def drift() -> Row:
    """How far the policy has moved, and where to."""
    return Row(
        "Drift",
        (
            Panel(
                "Log-probability of answers",
                "Sum over an answer's tokens, mean over pairs, nats. Chosen falling together with rejected is likelihood "
                "displacement (arXiv 2410.08847): watch what the model writes.",
                (Query(newest("dpo_train_logprob_nats", by="response"), "{{response}}"),),
                decimals=1,
                width=6,
                colors=_RESPONSES,
            ),
            Panel(
                "Log-probability of held-out answers",
                "The same at evaluations.",
                (Query(newest("dpo_eval_logprob_nats", by="response"), "{{response}}"),),
                decimals=1,
                width=6,
                colors=_RESPONSES,
            ),
            Panel(
                "Drift from the reference",
                "Log-ratio of policy to reference for each token of held-out answers. Chosen below -0.5 means that good answers have become "
                "much less likely: raise beta, lower the learning rate or add nllWeight. No data for methods without a reference.",
                (Query(newest("dpo_eval_ref_logratio_nats_per_token", by="response"), "{{response}}"),),
                decimals=3,
                width=6,
                colors=_RESPONSES,
            ),
            Panel(
                "Entropy",
                "Of the policy's distribution at tokens of the training answers, nats. Falling fast, the policy becomes certain of a few "
                "ways to say things; rising fast, it forgets the language.",
                (Query(newest("dpo_train_entropy_nats"), "train"),),
                decimals=3,
                width=6,
                colors=_SPLITS,
            ),
        ),
    )


def length() -> Row:
    """Is it length that is learned."""
    return Row(
        "Length",
        (
            Panel(
                "Tokens of answers",
                "Of greedy answers to the evaluation.samples prompts, cut at evaluation.sampleTokens, and of the data's answers that are "
                "trained on. The policy growing far beyond the reference is a length bias.",
                (
                    Query(newest("dpo_eval_generation_tokens", by="response"), "{{response}}"),
                    Query(newest("dpo_train_response_tokens", by="response"), "data, {{response}}"),
                ),
                decimals=0,
                minimum=0,
                width=6,
                colors={"policy": "blue", "reference": "text", "data, chosen": "green", "data, rejected": "red"},
            ),
            Panel(
                "Margin and length",
                "Correlation of the reward margin with how much longer the chosen answer is. Above 0.5 (dashed), much of what is learned is "
                "length; ln-dpo, simpo or ld-dpo help.",
                _both("margin_length_correlation"),
                decimals=2,
                minimum=-1,
                maximum=1,
                steps=((None, "blue"), (-0.5, "text"), (0.5, "orange")),
                line=True,
                width=6,
                colors=_SPLITS,
            ),
            Panel(
                "Held-out accuracy by length",
                "By tokens of a pair's longer answer: le_64 is 64 at most. Length alone is what a rule would score that always takes the "
                "longer answer, or always the shorter: a model that learned more is above it.",
                (
                    Query(newest("dpo_eval_reward_accuracy_by_length_ratio", by="bucket"), "{{bucket}}"),
                    Query(newest("dpo_eval_reward_accuracy_ratio"), "all"),
                    Query(newest("dpo_eval_length_baseline_accuracy_ratio"), "length alone"),
                ),
                unit="percentunit",
                minimum=0,
                maximum=1,
                width=6,
                colors={"all": "orange", "length alone": "text"},
            ),
            Panel(
                "Held-out margin",
                "Read the accuracies beside it with this: they count signs, and near a margin of 0 any accuracy is chance.",
                (Query(newest("dpo_eval_reward_margin"), "eval"),),
                decimals=3,
                width=6,
                colors=_SPLITS,
            ),
        ),
    )


def method() -> Row:
    """Figures that only some methods have."""
    return Row(
        "Terms of some methods",
        (
            Panel(
                "Likelihood of chosen answers",
                "Negative log-likelihood per token, nats, for orpo and with method.nllWeight. It should fall slowly or stay.",
                _both("nll_nats_per_token"),
                decimals=3,
                colors=_SPLITS,
            ),
            Panel(
                "KL divergence",
                "kto's estimate from answers to other prompts, nats; never below 0. A value far above the rewards' size means that the "
                "policy drifts and nothing is learned from the pairs.",
                _both("kl_nats"),
                decimals=3,
                minimum=0,
                colors=_SPLITS,
            ),
            Panel(
                "Log odds ratio",
                "orpo's log odds of chosen against rejected answers. It should rise.",
                _both("log_odds_chosen"),
                decimals=3,
                colors=_SPLITS,
            ),
        ),
    )
