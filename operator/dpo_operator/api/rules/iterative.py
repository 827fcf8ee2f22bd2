"""Rules about rounds: one judge with what its kind needs, answers and prompts that fit, and no setting that would mean nothing."""

from collections.abc import Callable

from dpo_operator.api.iterative import Builtin, Iterative
from dpo_operator.api.method import REFERENCE_FREE, MethodName
from dpo_operator.api.model import AdapterType
from dpo_operator.api.rules.data import URL_MESSAGE, data_cel, model_cel, readable_data, readable_model
from dpo_operator.api.rules.method import FREE, names_cel
from dpo_operator.api.rules.rule import Rule
from dpo_operator.api.rules.size import MAX_VALUES
from dpo_operator.api.types import DPOJobSpec

_JUDGE, _BUILTIN = "self.iterative.judge", "self.iterative.judge.builtin"
_GENERATION = "self.iterative.generation"
# Settings of one builtin judge, which it needs.
_OWN_FIELDS: tuple[tuple[str, str, Callable[[Builtin], object]], ...] = (
    ("tokens", "length", lambda builtin: builtin.tokens),
    ("pattern", "regex", lambda builtin: builtin.pattern),
    ("answerColumn", "exactMatch", lambda builtin: builtin.answer_column),
)


def _rule(field: str, cel: str, check: Callable[[DPOJobSpec, Iterative], bool], message: str) -> Rule:
    """A rule for jobs with rounds alone."""
    return Rule(
        f"iterative.{field}",
        f"!has(self.iterative) || ({cel})",
        lambda s: s.iterative is None or check(s, s.iterative),
        message,
    )


def _builtin_rule(field: str, cel: str, check: Callable[[Builtin], bool], message: str) -> Rule:
    return _rule(
        f"judge.builtin.{field}",
        f"!has({_BUILTIN}) || ({cel})",
        lambda _, rounds: rounds.judge.builtin is None or check(rounds.judge.builtin),
        message,
    )


def _only_for(field: str, name: str, read: Callable[[Builtin], object]) -> Rule:
    return _builtin_rule(
        field,
        f"({_BUILTIN}.name == '{name}') == has({_BUILTIN}.{field})",
        lambda builtin: (builtin.name == name) == (read(builtin) is not None),
        f"is for {name} alone, which needs it",
    )


def _copies_fit(spec: DPOJobSpec, rounds: Iterative) -> bool:
    parallel = rounds.generation.tensor_parallel
    return parallel == 1 or (spec.generates_with_vllm and spec.gpus_per_node > 0 and spec.gpus_per_node % parallel == 0)


def _vllm_has_adapter(spec: DPOJobSpec) -> bool:
    start = spec.model.adapter
    return (
        spec.adapter.type is not AdapterType.QLORA and not spec.adapter.dora and (start is None or start.train != "new")
    )


def _one_judge(_: DPOJobSpec, rounds: Iterative) -> bool:
    judge = rounds.judge
    given = {"rewardModel": judge.reward_model, "endpoint": judge.endpoint, "builtin": judge.builtin}
    return all((body is not None) == (kind == judge.type) for kind, body in given.items())


def _scores(rounds: Iterative) -> bool:
    return rounds.judge.endpoint is None or rounds.judge.endpoint.mode == "score"


def _enough_prompts(_: DPOJobSpec, rounds: Iterative) -> bool:
    if rounds.reuse_prompts or rounds.prompts_per_round is None:
        return True
    limit = rounds.prompts.limit if rounds.prompts is not None else None
    return limit is None or rounds.rounds * rounds.prompts_per_round + rounds.win_rate.prompts <= limit


def _budget_is_used(_: DPOJobSpec, rounds: Iterative) -> bool:
    budget = rounds.judge.budget
    unset = budget.calls is None and budget.tokens is None and budget.on_exhausted == "trainOnWhatThereIs"
    return rounds.judge.type == "endpoint" or unset


def _words(builtin: Builtin) -> int:
    return sum(len(word) for word in (*builtin.words, *builtin.bad_words))


ITERATIVE_RULES: tuple[Rule, ...] = (
    Rule(
        "method.name",
        "!has(self.iterative) || self.method.name != 'kto'",
        lambda s: s.iterative is None or s.method.name is not MethodName.KTO,
        "kto has no pairs, and rounds train on pairs of fresh answers; use another method, or leave iterative out",
    ),
    Rule(
        "method.name",
        "!has(self.iterative) || self.method.name != 'reward-model'",
        lambda s: s.iterative is None or not s.method.trains_reward_model,
        "reward-model trains no policy that could answer; train it by a job of its own, and name its export as iterative.judge.rewardModel.name",
    ),
    Rule(
        "pod.generateImage",
        "!has(self.pod.generateImage) || (has(self.iterative) && self.iterative.generation.engine == 'vllm')",
        lambda s: s.pod.generate_image is None or s.generates_with_vllm,
        "is for iterative.generation.engine vllm alone; with transformers the trainer's image generates",
    ),
    Rule(
        "export.checkpoint",
        "!has(self.iterative) || (has(self.export.checkpoint) ? self.export.checkpoint == 'last' : !has(self.earlyStopping))",
        lambda s: s.iterative is None or not s.exports_best,
        "must be last with iterative, also where earlyStopping is given: each round goes on from the last checkpoint of the one before",
    ),
    _rule(
        "reference",
        "self.iterative.reference == 'initial' || (!has(self.model.reference) && "
        f"(!(self.method.name in {names_cel(FREE)}) || self.method.plus.exists(loss, !(loss.name in {names_cel(FREE)}))))",
        lambda s, rounds: rounds.reference == "initial" or (s.model.reference is None and s.method.needs_reference),
        f"must be initial with model.reference, which is the reference of every round, and with {' and '.join(sorted(REFERENCE_FREE))}, which have none",
    ),
    _rule(
        "prompts.source",
        f"!has(self.iterative.prompts) || {data_cel('self.iterative.prompts.source')}",
        lambda _, rounds: rounds.prompts is None or readable_data(rounds.prompts.source),
        URL_MESSAGE,
    ),
    _rule(
        "promptsPerRound",
        "self.iterative.reusePrompts || !has(self.iterative.promptsPerRound) || !has(self.iterative.prompts) || "
        "!has(self.iterative.prompts.limit) || self.iterative.rounds * self.iterative.promptsPerRound + "
        "self.iterative.winRate.prompts <= self.iterative.prompts.limit",
        _enough_prompts,
        "times rounds, and winRate.prompts, are more than prompts.limit; no prompt is used twice unless reusePrompts is true",
    ),
    _rule(
        "generation.maxNewTokens",
        "self.iterative.generation.maxNewTokens < self.data.maxLength",
        lambda s, rounds: rounds.generation.max_new_tokens < s.data.max_length,
        "must be smaller than data.maxLength, so that prompts keep some tokens",
    ),
    _rule(
        "generation.tensorParallel",
        f"{_GENERATION}.tensorParallel == 1 || ({_GENERATION}.engine == 'vllm' && self.gpusPerNode > 0 && "
        f"self.gpusPerNode % {_GENERATION}.tensorParallel == 0)",
        _copies_fit,
        "must be 1, or with engine vllm a divisor of gpusPerNode: each copy of the model has that many GPUs of one node for itself",
    ),
    _rule(
        "generation.engine",
        f"{_GENERATION}.engine != 'vllm' || (self.adapter.type != 'qlora' && !self.adapter.dora && "
        "(!has(self.model.adapter) || self.model.adapter.train != 'new'))",
        lambda s, _: not s.generates_with_vllm or _vllm_has_adapter(s),
        "must be transformers with adapter.type qlora, adapter.dora, and model.adapter.train new: vLLM has no such adapters",
    ),
    _rule(
        "judge",
        f"has({_JUDGE}.rewardModel) == ({_JUDGE}.type == 'rewardModel') && has({_JUDGE}.endpoint) == ({_JUDGE}.type == 'endpoint') && "
        f"has({_BUILTIN}) == ({_JUDGE}.type == 'builtin')",
        _one_judge,
        "needs exactly the part that type names: rewardModel, endpoint or builtin",
    ),
    _rule(
        "judge.budget",
        f"{_JUDGE}.type == 'endpoint' || (!has({_JUDGE}.budget.calls) && !has({_JUDGE}.budget.tokens) && "
        f"{_JUDGE}.budget.onExhausted == 'trainOnWhatThereIs')",
        _budget_is_used,
        "must be left out unless type is endpoint; the other judges make no requests",
    ),
    _rule(
        "judge.rewardModel.name",
        f"!has({_JUDGE}.rewardModel) || {model_cel(f'{_JUDGE}.rewardModel.name')}",
        lambda _, rounds: rounds.judge.reward_model is None or readable_model(rounds.judge.reward_model.name),
        URL_MESSAGE,
    ),
    _rule(
        "judge.endpoint.bothOrders",
        f"!has({_JUDGE}.endpoint) || {_JUDGE}.endpoint.mode == 'pairwise' || {_JUDGE}.endpoint.bothOrders",
        lambda _, rounds: (
            rounds.judge.endpoint is None
            or rounds.judge.endpoint.mode == "pairwise"
            or rounds.judge.endpoint.both_orders
        ),
        "must be left out with mode score, in which each answer is asked for alone",
    ),
    _rule(
        "pairs",
        f"!has({_JUDGE}.endpoint) || {_JUDGE}.endpoint.mode == 'score' || (self.iterative.pairs.minGap == 0.0 && "
        "self.iterative.pairs.lengthPenalty == 0.0 && self.iterative.pairs.select != 'smallestGap')",
        lambda _, rounds: (
            _scores(rounds)
            or (rounds.pairs.min_gap == 0 and rounds.pairs.length_penalty == 0 and rounds.pairs.select != "smallestGap")
        ),
        "minGap, lengthPenalty and select smallestGap need a judge that scores; an endpoint does with mode score",
    ),
    _builtin_rule(
        "words",
        f"({_BUILTIN}.name == 'distinctWords') == ({_BUILTIN}.words.size() + {_BUILTIN}.badWords.size() > 0)",
        lambda builtin: (builtin.name == "distinctWords") == bool(builtin.words or builtin.bad_words),
        "and badWords are for distinctWords alone, which needs some",
    ),
    _builtin_rule(
        "words",
        f"{_BUILTIN}.words.map(w, w.size()).sum() + {_BUILTIN}.badWords.map(w, w.size()).sum() <= {MAX_VALUES}",
        lambda builtin: _words(builtin) <= MAX_VALUES,
        f"and badWords may have at most {MAX_VALUES:,} characters in all",
    ),
    *(_only_for(field, name, read) for field, name, read in _OWN_FIELDS),
)
