"""What prepare checks of the model's modules, without its weights, before any GPU is held."""

from collections.abc import Callable
from typing import Any

from dpo_operator.api.model import AdapterType
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.checkpoint.folder import CheckpointFolder
from dpo_trainer.model.adapters import add_adapters
from dpo_trainer.model.load import bare_model
from dpo_trainer.model.routers import Routers
from dpo_trainer.model.targets import resolve
from dpo_trainer.pretrained import adapters
from dpo_trainer.runtime.untrusted import Untrusted
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry


def check(spec: DPOJobSpec, work: WorkDir, telemetry: Telemetry, progress: Callable[[str, float], None]) -> None:
    """Compare the adapter's targets and the routers that are asked for with the model's modules, and say what they are. Raises TrainerError.

    This also runs on a folder that was prepared earlier, because neither is a part of what prepare writes; not when training has begun: its
    checkpoints tell what is adapted.
    """
    if CheckpointFolder(work.checkpoints).newest() is not None:
        return
    with Untrusted("making the model's modules from config.json"):
        bare = bare_model(work.model, classifier=spec.method.trains_reward_model)
        if spec.training.router_aux_loss is not None:
            found = Routers(bare)
            text = f"the auxiliary loss is of {found.count} routers, which choose {found.top_k} experts for a token"
            progress(text, 1.0)
        if spec.adapter.type is not AdapterType.NONE:
            _check_adapter(bare, spec, work, telemetry, progress)


def _check_adapter(
    bare: Any, spec: DPOJobSpec, work: WorkDir, telemetry: Telemetry, progress: Callable[[str, float], None]
) -> None:
    if (start := spec.model.adapter) is None or start.train == "new":
        progress(str(resolve(bare, spec.adapter)), 1.0)
    if start is not None:
        add_adapters(bare, spec, work.model)
        found = adapters.read(work.model / adapters.FOLDER, "spec.model.adapter")
        if problem := adapters.differs_from_base(found, spec.model.name):
            telemetry.warning("AdapterBase", problem)
