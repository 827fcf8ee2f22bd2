"""prepared.json: what prepare made, from which inputs, with which settings. It is the last file that prepare writes."""

import hashlib
import json
import logging
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, SkipValidation, model_serializer

from dpo_operator.api.iterative import Iterative
from dpo_operator.api.reports import DatasetReport
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.checkpoint.identity import identity
from dpo_trainer.checkpoint.layout import committed
from dpo_trainer.checkpoint.trust import Owner, Trust
from dpo_trainer.data import mixture
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.data.prompts import PromptSet
from dpo_trainer.pretrained.digest import model_digest
from dpo_trainer.pretrained.files import sha256_of
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration
from dpo_trainer.runtime.files import commit
from dpo_trainer.runtime.versions import code_digest
from dpo_trainer.runtime.workdir import WorkDir

log = logging.getLogger(__name__)

# Format of the prepared folder; a new number makes prepare replace older folders.
VERSION: Final = 2

# Rooms whose code decides what prepare makes of the same inputs.
_ROOMS: Final = ("data", "prepare", "pretrained")

# Keys are names of files, which need not be UTF-8.
Sizes = Annotated[dict[str, int], SkipValidation]
Digests = Annotated[dict[str, str], SkipValidation]


class Part(BaseModel):
    """A part of prepared.json: immutable. Keys that a later version adds are ignored.

    LATER: fields that earlier versions did not write. They are left out while they are empty, so that an earlier record stays as it is.
    """

    model_config = ConfigDict(frozen=True)
    LATER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        return {key: value for key, value in document.items() if value or key not in self.LATER}


class AdapterRecord(Part):
    """The adapter that training starts from; its files are among the model's. base: the model that it names. See ModelRecord."""

    source: str
    kind: str
    commit: str | None
    base: str


class Original(Part):
    """A file that prepare read. size: bytes. modified: nanoseconds since 1970. sha256: hex."""

    size: int
    modified: int
    sha256: str


Originals = dict[Annotated[str, SkipValidation], Original]


class ModelRecord(Part):
    """The prepared model. weights, files: SHA-256 of each file, hex; files are all but the weights.

    kind: hub, path, claim, or the scheme of an object store. commit: of the hub, None for files.
    """

    source: str
    kind: str
    commit: str | None
    parameters: int
    dtypes: tuple[str, ...]
    weights: Digests
    files: Digests
    adapter: AdapterRecord | None = None
    LATER = frozenset({"adapter"})


class TokenizerRecord(Part):
    """The tokenizer. chat_template: its SHA-256, hex; None without one. begin: ids put before a text (BOS)."""

    files: Digests
    chat_template: str | None
    begin: tuple[int, ...]
    eos: int


class InputRecord(Part):
    """One source of data, and what became of its rows.

    kind: see ModelRecord. split, config, commit: for the hub only. files: bytes of each file; None for the hub.
    dropped: rows by reason. used, held_out: pairs for an epoch of training and for evaluation; None for spec.data.eval.
    """

    source: str
    kind: str
    weight: float
    split: str | None = None
    config: str | None = None
    commit: str | None = None
    files: Sizes | None = None
    rows: int
    format: str
    dropped: dict[str, int]
    pairs: int
    truncated: int
    boundary_merges: int
    special_token_text: int
    used: int | None = None
    held_out: int | None = None

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the keys that do not apply to this source."""
        document: dict[str, Any] = handler(self)
        of_hub = ("split", "config", "commit") if self.kind == "hub" else ()
        return {key: value for key, value in document.items() if value is not None or key in of_hub}


class SplitRecord(Part):
    """Tokenized pairs. digest: PairDataset.digest. The other keys are the split's statistics, as in data/report.json."""

    model_config = ConfigDict(frozen=True, extra="allow")

    digest: str


class SplitRecords(Part):
    """Training pairs and evaluation pairs."""

    train: SplitRecord
    eval: SplitRecord | None


class PromptsRecord(Part):
    """The prompts that rounds answer.

    digest: PromptSet.digest. per_round, compared: of each round, and of the win rates. left_out: by reason. plain_evaluation: whether all
    evaluation pairs are plain text, so that their tokens are all of it.
    """

    LATER = frozenset({"plain_evaluation"})
    digest: str
    prompts: int
    per_round: int
    compared: int
    left_out: dict[str, int]
    plain_evaluation: bool = False


class Prepared(Part):
    """The content of prepared.json.

    inputs: by the names of mixture.sources, and "eval". originals: files of this machine and of claims that were read, by the same
        names, and "model"; empty where an earlier version prepared. prepared_by: see the function of this name; empty as well.
    """

    LATER = frozenset({"originals", "prepared_by", "reference_model", "judge_model", "prompts"})
    version: Literal[2] = VERSION
    spec_hash: str
    report: DatasetReport
    model: ModelRecord
    reference_model: ModelRecord | None = None
    judge_model: ModelRecord | None = None
    tokenizer: TokenizerRecord
    inputs: dict[str, InputRecord]
    data: SplitRecords
    originals: dict[str, Originals] = {}
    prepared_by: str = ""
    prompts: PromptsRecord | None = None

    @classmethod
    def read(cls, work: WorkDir) -> "Prepared":
        """The record in a work folder. Raises OSError; ValueError when it is not what prepare writes."""
        return cls.model_validate(json.loads(work.prepared.read_text(encoding="utf-8")))

    def to_bytes(self) -> bytes:
        """The file's content."""
        return json.dumps(self.model_dump(), indent=1).encode()

    def write(self, work: WorkDir) -> None:
        """Commit prepared.json: after this, the folder counts as prepared. Raises OSError."""
        commit(work.prepared, self.to_bytes())


class _Header(BaseModel):
    """What every version of prepared.json has."""

    spec_hash: Any = None


def spec_hash(spec: DPOJobSpec) -> str:
    """SHA-256 over the settings that decide what prepare writes, hex.

    Defaults are left out: a later version, which knows more settings, finds the same hash.
    """
    parts = {
        "version": VERSION,
        "model": spec.model.model_dump(
            mode="json", include={"name", "revision", "chat_template", "adapter", "reference"}, exclude_defaults=True
        ),
        "data": spec.data.model_dump(mode="json", exclude_defaults=True),
        "seed": spec.training.seed if mixture.is_random(spec.data) else None,
    }
    if spec.iterative is not None:
        parts["iterative"] = _rounds_part(spec.iterative, spec.training.seed)
        if (judge := spec.iterative.judge.reward_model) is not None:
            parts["judge"] = judge.model_dump(mode="json", include={"name", "revision"}, exclude_defaults=True)
    # Which bucket or repository a name means.
    if places := {name: part for name in ("s3", "gs", "azure", "hub") if (part := _set(getattr(spec.way_out, name)))}:
        parts["access"] = places
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def prepared_by() -> str:
    """Digest of the code that prepares, hex: other code may make other tokens of the same inputs."""
    return code_digest(_ROOMS)


def _rounds_part(rounds: Iterative, seed: int) -> dict[str, Any]:
    """Settings that decide which prompts there are. Not how many rounds: more of them may be asked for later."""
    builtin = rounds.judge.builtin
    return {
        "prompts": _set(rounds.prompts) if rounds.prompts is not None else None,
        "perRound": rounds.prompts_per_round,
        "compared": rounds.win_rate.prompts,
        "longestAnswer": rounds.generation.max_new_tokens,
        "answerColumn": builtin.answer_column if builtin is not None else None,
        "seed": seed,
    }


def _set(part: BaseModel) -> dict[str, Any]:
    return part.model_dump(mode="json", exclude_defaults=True)


def finished(work: WorkDir, key: str) -> DatasetReport | None:
    """Report of an earlier run with the same settings whose files are intact; None when there is none.

    What another version prepared is used only where a run has begun on it: its checkpoints belong to these tokens.
    """
    try:
        if _stored_hash(work) != key:
            return None
        made = Prepared.read(work)
        if made.prepared_by != prepared_by() and not _begun(work):
            log.warning("another version prepared %s, and no checkpoint stands on that; preparing again", work.root)
            return None
        models = (
            (work.model, made.model), (work.reference_model, made.reference_model), (work.judge_model, made.judge_model)
        )  # fmt: skip
        for folder, model in models:
            digests = model.weights | model.files if model is not None else {}
            if sha256_of(folder, digests) != digests:
                log.warning("files of %s changed since they were prepared; preparing again", folder)
                return None
        for name, folder, split in (
            ("train", work.train_data, made.data.train),
            ("eval", work.eval_data, made.data.eval),
        ):
            if split is not None:
                dataset = PairDataset.open(folder)
                if dataset.digest != split.digest or not dataset.is_intact():
                    log.warning("the %s tokens changed since they were prepared; preparing again", name)
                    return None
        if made.prompts is not None and PromptSet.open(work.prompts).digest != made.prompts.digest:
            log.warning("the prompts of the rounds changed since they were prepared; preparing again")
            return None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, TrainerError) as error:
        log.warning("%s is damaged (%s); preparing again", work.prepared, error)
        return None
    return made.report


def _begun(work: WorkDir) -> bool:
    """Whether a run stands on what was prepared: it has a committed checkpoint, or answers to prompts, or a leg of a sweep."""
    return bool(committed(work.checkpoints) or work.rounds or work.legs)


def _holds_run(work: WorkDir) -> bool:
    """Whether a run has left anything in its folders of checkpoints, rounds or legs."""
    return (work.checkpoints.is_dir() and any(work.checkpoints.iterdir())) or bool(work.rounds or work.legs)


def refuse_other_run(work: WorkDir, key: str) -> None:
    """Raise INVALID_CONFIGURATION when the folder has checkpoints of a run with other data or another model."""
    if not work.prepared.exists() or not _holds_run(work):
        return
    try:
        other = _stored_hash(work) != key
    except ValueError:
        return
    if other:
        raise invalid_configuration(
            f"{work.root} holds checkpoints of a run with another model or other data; use another folder, or delete this one"
        )


def refuse_edited(work: WorkDir, what: str) -> None:
    """Raise INVALID_CONFIGURATION when the folder has checkpoints of a run on inputs that were edited. what: which, and how."""
    if _holds_run(work):
        raise invalid_configuration(
            f"{what} when it was prepared, and {work.root} holds checkpoints of a run on that; put the file back, or start over in "
            "another folder (dpo run --fresh)"
        )


def input_digests(spec: DPOJobSpec, work: WorkDir) -> dict[str, str]:
    """Digests of the prepared models by what they are: model and, where the job names one, reference.

    Weights are not read when prepare's record of them is there.
    """
    try:
        made = Prepared.read(work)
    except (OSError, ValueError):
        made = None
    found = {"model": model_digest(work.model, made.model.weights if made else None)}
    if spec.model.reference is not None:
        known = made.reference_model.weights if made and made.reference_model else None
        found["reference"] = model_digest(work.reference_model, known)
    return found


def checkpoint_owner(spec: DPOJobSpec, work: WorkDir, trust: Trust | None) -> Owner:
    """The job that a checkpoint must belong to, by its settings and by what is prepared. trust: see Owner."""
    data = PairDataset.open(work.train_data).digest
    return Owner(identity(spec, dataset=data, **input_digests(spec, work)), trust)


def _stored_hash(work: WorkDir) -> Any:
    """spec_hash in prepared.json of any version. Raises OSError, and ValueError when the file is not a JSON object."""
    return _Header.model_validate(json.loads(work.prepared.read_text(encoding="utf-8"))).spec_hash
