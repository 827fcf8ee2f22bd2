"""The judge that spec.iterative.judge asks for."""

from dpo_operator.api import names
from dpo_operator.api.data import Template
from dpo_operator.api.iterative import Judge as Settings
from dpo_trainer.judging import builtin
from dpo_trainer.judging.contract import Judge
from dpo_trainer.runtime.errors import invalid_configuration
from dpo_trainer.runtime.job import judge_key
from dpo_trainer.runtime.stop import StopRequest
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.sources.access import Access


def check_settings(settings: Settings) -> None:
    """Raise TrainerError INVALID_CONFIGURATION for settings that no judge can work with: for prepare, before anything is generated."""
    parts = {"rewardModel": settings.reward_model, "endpoint": settings.endpoint, "builtin": settings.builtin}
    if [name for name, part in parts.items() if part is not None] != [settings.type]:
        raise invalid_configuration(
            f"spec.iterative.judge: type is {settings.type}, so {settings.type} must be set and the others left out"
        )
    if settings.builtin is not None:
        builtin.check(settings.builtin)


def open_judge(
    settings: Settings,
    work: WorkDir,
    *,
    access: Access | None = None,
    template: Template | None = None,
    stop: StopRequest | None = None,
) -> Judge:
    """Open the judge of a job.

    work: of the job, not of a round: what was paid for once is good for all rounds. access: proxy and certificates of an endpoint.
    template: spec.data.template, for a reward model. stop: polled by judges whose calls cost something.
    Raises TrainerError.
    """
    check_settings(settings)
    if settings.builtin is not None:
        return builtin.BuiltinJudge(settings.builtin)
    if settings.endpoint is not None:
        from dpo_trainer.judging.endpoint.judge import EndpointJudge

        key = judge_key()
        if key is None and (secret := settings.endpoint.api_key_secret_ref) is not None:
            raise invalid_configuration(
                f"spec.iterative.judge.endpoint.apiKeySecretRef: expected a key in {secret.key} of Secret {secret.name}, found none; without a "
                f"cluster, name a file with the key in {names.ENV_JUDGE_KEY_FILE}"
            )
        (access or Access()).apply(work.root / ".cache")
        return EndpointJudge(settings.endpoint, settings.budget, work, key, stop or StopRequest())
    assert settings.reward_model is not None
    from dpo_trainer.judging.reward_model import RewardModelJudge

    return RewardModelJudge(settings.reward_model, work.judge_model, template or Template())
