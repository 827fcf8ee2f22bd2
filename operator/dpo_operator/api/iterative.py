"""Rounds on fresh answers: what is generated, who judges it, and which pairs are trained on.

A round generates several answers to each prompt with the current policy, judges them, trains on pairs of them, and exports the policy for the
next round. The scheme is iterative DPO as in 2312.11456 (RLHFlow) and 2401.10020 (Self-Rewarding).
"""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StringConstraints

from dpo_operator.api.access import ServerUrl
from dpo_operator.api.base import (
    ApiModel,
    LabelKey,
    LabelValue,
    ObjectName,
    Revision,
    SecretKeyRef,
    Source,
    Split,
    Subset,
)
from dpo_operator.api.data import ColumnName

MAX_ROUNDS = 20
# Rounds whose figures stay in the status.
MAX_ROUND_HISTORY = 10

Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Prompts(ApiModel):
    """Prompts that the policy answers."""

    source: Source = Field(
        description="Hub id, file or folder, as data.train.source. Answers in it are ignored.",
    )
    split: Split = Field(default="train", description="Split of it.")
    config: Subset | None = Field(default=None, description="Configuration of a hub dataset.")
    revision: Revision | None = Field(
        default=None,
        description="Branch, tag or commit of a hub dataset.",
    )
    column: ColumnName | None = Field(
        default=None, description="Column of the prompt, text or chat messages. Default: as data.train.columns.prompt."
    )
    limit: StrictInt | None = Field(
        default=None, ge=1, le=1_000_000_000_000, description="Use only the first rows, for trials."
    )


class Generation(ApiModel):
    """How the policy answers."""

    engine: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="transformers: in the trainer's image, on GPUs and CPUs. vllm: faster on GPUs, and for models that need several; in an image of its own, "
        "pod.generateImage.",
    )
    tensor_parallel: StrictInt = Field(
        default=1,
        ge=1,
        le=64,
        description="GPUs that hold one copy of the model together, which divide gpusPerNode. More than 1 with engine vllm alone.",
    )
    samples_per_prompt: StrictInt = Field(
        default=4, ge=2, le=64, description="Answers to each prompt. 8 costs twice and finds wider pairs."
    )
    temperature: StrictFloat = Field(default=1.0, gt=0, le=2, description="Sampling temperature.")
    top_p: StrictFloat = Field(
        default=1.0, gt=0, le=1, description="Sample from the most likely tokens that have this probability together."
    )
    max_new_tokens: StrictInt = Field(default=1024, ge=1, le=131_072, description="Most tokens of an answer.")
    unit_prompts: StrictInt = Field(
        default=64, ge=1, le=65_536, description="Prompts whose answers are written at once: what a kill can cost."
    )
    micro_batch_size: StrictInt | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Most answers that are generated together by one copy of the model. Default: 64, fewer when memory runs out; with engine vllm what "
        "vLLM takes.",
    )


class RewardModel(ApiModel):
    """A sequence classifier with one output that scores an answer, in the judge's pod."""

    name: Source = Field(description="Hub id, folder, or pvc:// path of the model, in safetensors.")
    revision: Revision | None = Field(default=None, description="Branch, tag or commit.")
    max_length: StrictInt = Field(
        default=4096,
        ge=8,
        le=1_048_576,
        description="Most tokens of prompt and answer; longer ones are not judged, and counted.",
    )
    micro_batch_size: StrictInt = Field(default=16, ge=1, le=4096, description="Answers that are scored together.")
    gpus: StrictInt = Field(default=0, ge=0, le=1, description="GPUs of the judge's pod.")


class AllowTo(ApiModel):
    """Pods that the judge's pod may reach."""

    namespace: ObjectName = Field(description="Their namespace.")
    pod_labels: dict[LabelKey, LabelValue] = Field(min_length=1, max_length=8, description="Labels that they have.")
    port: StrictInt = Field(ge=1, le=65_535, description="Their port.")


class Endpoint(ApiModel):
    """A server with OpenAI's chat completions API that compares or scores answers."""

    url: ServerUrl = Field(description="Base URL, such as http://judge.team.svc:8000/v1.")
    model: Text = Field(description="Name of the model in requests.")
    api_key_secret_ref: SecretKeyRef | None = Field(
        default=None, description="Secret with the API key. Only the judge's pod gets it."
    )
    mode: Literal["pairwise", "score"] = Field(
        default="pairwise",
        description="pairwise: best and worst by comparisons of two answers. score: each answer gets 1 to 10.",
    )
    rubric: Annotated[str, StringConstraints(min_length=1, max_length=8192)] = Field(
        default="helpful", description="What is better: helpful, concise, or a text that says it."
    )
    both_orders: StrictBool = Field(
        default=True, description="Ask for both orders of two answers; when the verdicts differ, it is a tie."
    )
    max_tokens: StrictInt = Field(default=512, ge=1, le=16_384, description="Most tokens of a verdict.")
    concurrency: StrictInt = Field(default=8, ge=1, le=256, description="Requests at the same time.")
    timeout_seconds: StrictInt = Field(default=60, ge=1, le=3600, description="Time for one request.")
    retries: StrictInt = Field(
        default=6,
        ge=0,
        le=100,
        description="Retries of a request after 408, 409, 429, 5xx or a lost connection, with growing waits or Retry-After.",
    )
    max_unparsable: StrictFloat = Field(
        default=0.05, ge=0, le=1, description="Share of verdicts that may be unreadable before the job fails."
    )
    allow_to: AllowTo | None = Field(
        default=None,
        description="Where the judge's pod may connect to inside the cluster. Default: any address that is neither private nor of the cloud's metadata, at the URL's port.",
    )


class Builtin(ApiModel):
    """A rule that scores an answer without a model."""

    name: Literal["distinctWords", "length", "regex", "exactMatch"] = Field(
        description="distinctWords: different words of words, minus different words of badWords. length: minus the distance to tokens, in tokens. "
        "regex: 1 where pattern is found, else 0. exactMatch: 1 where the answer is the row's answer, else 0."
    )
    words: list[Text] = Field(default=[], max_length=1000, description="For distinctWords: words that count 1.")
    bad_words: list[Text] = Field(default=[], max_length=1000, description="For distinctWords: words that count -1.")
    tokens: StrictInt | None = Field(
        default=None, ge=1, le=131_072, description="For length: the wanted tokens of an answer."
    )
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = Field(
        default=None, description="For regex: RE2 syntax."
    )
    answer_column: ColumnName | None = Field(
        default=None, description="For exactMatch: column of the right answer in prompts."
    )


class JudgeBudget(ApiModel):
    """What an endpoint may cost, over all rounds."""

    calls: StrictInt | None = Field(
        default=None, ge=1, le=1_000_000_000, description="Most requests. Default: no limit."
    )
    tokens: StrictInt | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000_000,
        description="Most tokens of requests and verdicts, as the server counts them. Default: no limit.",
    )
    on_exhausted: Literal["trainOnWhatThereIs", "fail"] = Field(
        default="trainOnWhatThereIs",
        description="trainOnWhatThereIs: the last round trains on what was judged. fail: the job fails.",
    )


class Judge(ApiModel):
    """Who says which answer is better. Exactly the part that type names is set."""

    type: Literal["rewardModel", "endpoint", "builtin"] = Field(description="Kind of judge.")
    reward_model: RewardModel | None = Field(default=None, description="For rewardModel.")
    endpoint: Endpoint | None = Field(default=None, description="For endpoint.")
    builtin: Builtin | None = Field(default=None, description="For builtin.")
    budget: JudgeBudget = Field(default=JudgeBudget(), description="Limits of an endpoint.")


class PairSelection(ApiModel):
    """Which two answers to a prompt become a pair. Ties never train."""

    select: Literal["bestWorst", "bestRandom", "smallestGap"] = Field(
        default="bestWorst",
        description="bestWorst: highest and lowest score. bestRandom: highest and one of the others. smallestGap: the two with the smallest gap "
        "above minGap, a hard pair.",
    )
    min_gap: StrictFloat = Field(
        default=0.0, ge=0, le=1e9, description="The gap of scores must be larger. For judges that score."
    )
    max_length_ratio: StrictFloat | None = Field(
        default=None,
        ge=1,
        le=1e6,
        description="Leave pairs out whose longer answer has more than this many times the tokens of the shorter.",
    )
    length_penalty: StrictFloat = Field(
        default=0.0, ge=0, le=1e6, description="Points that each token of an answer costs. For judges that score."
    )
    chosen_must_end: StrictBool = Field(
        default=True, description="An answer that was cut at maxNewTokens is never chosen."
    )
    min_pairs: StrictFloat = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the prompts that must give a pair; with fewer the rounds end as Saturated.",
    )


class WinRate(ApiModel):
    """How rounds are compared: the judge compares answers of this policy with those of the one before and of the initial one."""

    prompts: StrictInt = Field(
        default=200, ge=0, le=100_000, description="Prompts that no round trains on. 0: no comparison."
    )


class Iterative(ApiModel):
    """Rounds: generate, judge, train, export, again."""

    rounds: StrictInt = Field(default=3, ge=1, le=MAX_ROUNDS, description="Rounds at most.")
    prompts: Prompts | None = Field(default=None, description="Prompts to answer. Default: those of data.train.")
    prompts_per_round: StrictInt | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Prompts of each round, different ones in each. Default: all of them divided by rounds.",
    )
    reuse_prompts: StrictBool = Field(
        default=False, description="Use prompts again when there are too few for all rounds."
    )
    mix_offline: StrictFloat = Field(
        default=0.0, ge=0, le=1, description="Share of the pairs of data.train that round 1 trains on besides its own."
    )
    reference: Literal["initial", "previous"] = Field(
        default="initial",
        description="Reference of each round. initial: the model that the job began with. previous: the policy that the round began with; it drifts further.",
    )
    generation: Generation = Field(default=Generation(), description="How the policy answers.")
    judge: Judge = Field(description="Who says which answer is better.")
    pairs: PairSelection = Field(default=PairSelection(), description="Which answers become a pair.")
    win_rate: WinRate = Field(default=WinRate(), description="Comparison of rounds.")
    evaluate_last: StrictBool = Field(default=True, description="Compare the policy of the last round, too.")
    stop_when_worse: StrictBool = Field(
        default=True,
        description="End the rounds and export the policy before when a round's win rate against it is below 0.5 by two standard errors.",
    )

    @property
    def sources(self) -> tuple[str, ...]:
        """What prepare reads for the rounds: the prompts and the reward model, as far as they are given."""
        model = self.judge.reward_model
        given = (self.prompts.source if self.prompts is not None else None, model.name if model is not None else None)
        return tuple(source for source in given if source is not None)
