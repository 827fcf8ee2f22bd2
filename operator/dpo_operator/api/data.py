"""Preference data: where they come from, how their rows are read, which of them are used."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StringConstraints

from dpo_operator.api.base import ApiModel, Revision, Source, Split, Subset

# A column's name; a dot goes into nested objects and lists: info.post, summaries.0.text.
ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Columns(ApiModel):
    """Names of the dataset's columns, where they differ from the usual ones. A dot goes into nested objects and lists."""

    prompt: ColumnName | None = Field(
        default=None,
        description="Column of the prompt (text or chat messages). Default: prompt; where there is none, instruction with input, "
        "or the only one of question, query, input, history, conversations, conversation and context.",
    )
    system: ColumnName | None = Field(
        default=None,
        description="Column of a system message that goes before the prompt; if set, plain text becomes chat messages. Default: system, "
        "system_prompt, system_message or system_instruction, for chat messages.",
    )
    tools: ColumnName | None = Field(
        default=None,
        description="Column of the tools that a prompt offers, for chat messages: a list of JSON schemas, or this list as JSON text. Default: tools.",
    )
    chosen: ColumnName = Field(default="chosen", description="Column of the preferred answer.")
    rejected: ColumnName = Field(default="rejected", description="Column of the other answer.")
    completion: ColumnName = Field(default="completion", description="Column of the answer in unpaired and rated data.")
    label: ColumnName = Field(
        default="label",
        description="Column that says whether an unpaired answer is desirable: true/false, 1/0, yes/no or good/bad.",
    )
    responses: ColumnName = Field(
        default="responses",
        description="Column with a list of answers in scored data: texts, or objects with a text and a score.",
    )
    scores: ColumnName = Field(
        default="scores",
        description="Column with a list of numbers, one for each of responses, or the key of the score inside each response, or the column of "
        "the one score of rated data. The "
        "highest is best, except in columns named rank, ranks, ranking or rankings.",
    )
    chosen_score: ColumnName = Field(
        default="score_chosen", description="Column of the preferred answer's score, which filters.minScoreGap reads."
    )
    rejected_score: ColumnName = Field(
        default="score_rejected", description="Column of the other answer's score, which filters.minScoreGap reads."
    )
    answer_a: ColumnName = Field(
        default="response_a", description="Column of the first answer in voted data, or in scored data of two columns."
    )
    answer_b: ColumnName = Field(
        default="response_b", description="Column of the second answer in voted data, or in scored data of two columns."
    )
    score_a: ColumnName = Field(
        default="score_a",
        description="Column of answerA's score in scored data of two columns; the higher one is chosen.",
    )
    score_b: ColumnName = Field(
        default="score_b", description="Column of answerB's score in scored data of two columns."
    )
    signed_preference: ColumnName | None = Field(
        default=None,
        description="Column with one signed number instead of scoreA and scoreB: below 0 when answerA is better, above 0 when answerB is, "
        "0 for a tie. Not for 1 and 2, which are votes. Default: none.",
    )
    votes: ColumnName = Field(
        default="votes",
        description="Column of the annotators' votes: one, or a list, of a/b/tie (also A/B, 0/1, model_a/model_b or the names of "
        "the answers' columns, and 1/2 where these end in 1 and 2, with 0 as a tie), or an object of counts, {a: 3, b: 1}.",
    )
    annotators: list[ColumnName] = Field(
        default=[],
        max_length=32,
        description="Columns of several annotators instead of votes, one vote in each; the majority's answer is chosen.",
    )
    first_vote: StrictInt | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Number in votes and annotators that means answerA. With 1, 2 means answerB and 0 a tie. Default: the number at the "
        "end of answerA's name, or else 0 for votes; without either, numbers of annotators are refused.",
    )
    confidence: ColumnName = Field(default="confidence", description="Column that filters.minConfidence reads, 0 to 1.")

    @property
    def mapped(self) -> frozenset[str]:
        """Fields with other names than the usual ones.

        Not model_fields_set: the API server and every job file write the usual names too.
        """
        fields = type(self).model_fields.items()
        return frozenset(name for name, field in fields if getattr(self, name) != field.default)


class Dataset(ApiModel):
    """One split of preference data."""

    source: Source = Field(
        description="Hub id (org/name), a .jsonl, .json, .csv, .tsv, .parquet or .arrow file or a folder of them: a path, pvc://claim/path, s3://, "
        "gs://, az:// or hf://datasets/org/name/path."
    )
    split: Split = Field(
        default="train",
        description="Split of a hub dataset, or of a file or folder that holds several; other files ignore it.",
    )
    config: Subset | None = Field(
        default=None,
        description="Configuration (subset) of a hub dataset.",
    )
    revision: Revision | None = Field(
        default=None,
        description="Branch, tag or commit of a hub dataset.",
    )
    format: Literal["auto", "pairs", "messages", "dialogue", "scored", "votes", "unpaired", "rated"] = Field(
        default="auto",
        description="pairs: prompt, chosen, rejected as text. messages: the same as chat messages. dialogue: chosen and rejected are "
        "whole '\\n\\nHuman: … \\n\\nAssistant: …' texts that share their prompt. scored: several answers with scores, in one list or in two columns; the best is "
        "chosen, the worst rejected. votes: two answers and annotators' votes. unpaired: prompt, completion and a label, for kto. "
        "rated: prompt, one completion and its score; of consecutive rows with one prompt, the best answer is chosen, the worst rejected. "
        "auto: decided by looking at the rows.",
    )
    columns: Columns = Field(default=Columns(), description="Names of the columns.")
    ignore_columns: list[ColumnName] = Field(
        default=[],
        max_length=64,
        description="Columns that are not read, such as a system column that is not a system message. Filters still see them.",
    )
    limit: StrictInt | None = Field(
        default=None, ge=1, le=1_000_000_000_000, description="Use only the first rows, for trials."
    )
    weight: StrictFloat = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="How often each pair is used in an epoch of training: 0.5 takes a random half of them, 2 takes each twice, "
        "1.5 each once and a random half twice.",
    )


class Condition(ApiModel):
    """What a column of a row must hold for the row to be used, such as a language or a source."""

    column: ColumnName = Field(description="Column; a dot goes into nested objects.")
    operator: Literal["In", "NotIn", "AtLeast", "AtMost", "Exists", "DoesNotExist"] = Field(
        default="In",
        description="In, NotIn: the value as text is, or is not, among values. AtLeast, AtMost: the value is a number and compared "
        "with the one value. Exists, DoesNotExist: there is, or is not, a value.",
    )
    values: list[Annotated[str, StringConstraints(max_length=1024)]] = Field(
        default=[], max_length=256, description="Texts or numbers to compare with; true and false for booleans."
    )


class Filters(ApiModel):
    """Which rows are left out, and how many may be. Each row left out is counted by reason and listed in a file."""

    min_confidence: StrictFloat | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Drop pairs whose confidence column is below this; ambiguous pairs flatten the margin.",
    )
    min_score_gap: StrictFloat | None = Field(
        default=None,
        ge=0,
        le=1e9,
        description="Drop pairs whose chosen answer does not score higher by at least this (scored data, or columns chosenScore and "
        "rejectedScore).",
    )
    min_agreement: StrictFloat | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Drop voted pairs when a smaller share of the votes (ties count as half) is for the winner.",
    )
    max_length_ratio: StrictFloat | None = Field(
        default=None,
        ge=1,
        le=1e6,
        description="Drop pairs whose longer answer has more than this many times the tokens of the shorter one.",
    )
    drop_duplicates: StrictBool = Field(
        default=False,
        description="Drop pairs whose prompt and answers, as tokens, were in an earlier pair of the same data (train and mixture "
        "together).",
    )
    where: list[Condition] = Field(
        default=[], max_length=32, description="Conditions that a row must meet, such as a language or a source."
    )
    max_bad_rows: StrictFloat = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of rows, 0 to 1, that may be unusable (malformed, empty, equal answers, differing prompts) before the job fails in "
        "prepare. Rows that the other filters drop do not count, nor do ties.",
    )


class Template(ApiModel):
    """How the chat template treats what rows hold."""

    keep_reasoning: Literal["all", "answers", "none"] = Field(
        default="all",
        description="Reasoning that must reach the tokens. A row is left out if the template cuts it, as templates of reasoning models do "
        "in earlier turns. all: of all turns. answers: of the answers. none: the template may cut all of it.",
    )
    special_tokens: Literal["refuse", "read", "spell"] = Field(
        default="refuse",
        description="How text that looks already templated is handled. refuse: such rows are left out. read: special tokens in plain text become "
        "tokens, and BOS and EOS are added only where they are missing. spell: they are spelled out, for text that only quotes them.",
    )


class Data(ApiModel):
    """Training and evaluation data, and how it becomes tokens."""

    train: Dataset = Field(description="Pairs to train on.")
    mixture: list[Dataset] = Field(
        default=[],
        max_length=32,
        description="More training data, mixed with train; weight says how much of each is used.",
    )
    eval: Dataset | None = Field(
        default=None,
        description="Pairs to evaluate on. Without it, evalFraction of the training pairs is held out.",
    )
    eval_fraction: StrictFloat = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="Share of the training pairs held out for evaluation when eval is not given; 0 means no evaluation.",
    )
    max_length: StrictInt = Field(
        default=2048, ge=8, le=1048576, description="Most tokens of prompt and answer together."
    )
    max_prompt_length: StrictInt | None = Field(
        default=None,
        ge=1,
        le=1048576,
        description="Most tokens of the prompt. Default: half of maxLength, more where the answers are short.",
    )
    truncation: Literal["keep_end", "keep_start", "drop"] = Field(
        default="keep_end",
        description="What becomes of pairs that are too long. keep_end, keep_start: the end or the start of the prompt stays, answers "
        "lose their end; an answer always keeps at least one token. drop: such pairs are left out.",
    )
    template: Template = Field(default=Template(), description="How the chat template treats what rows hold.")
    filters: Filters = Field(default=Filters(), description="Which rows are left out.")

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """Everything that is read: train, the mixture, and eval where it is given."""
        return (self.train, *self.mixture, *(() if self.eval is None else (self.eval,)))
