"""What prepare warns of: logged at once, and kept in diagnosis.json."""

import json
from itertools import zip_longest

from dpo_operator.api.diagnosis import Finding
from dpo_trainer.diagnosis.history import Diagnosis
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry


def tell_of_data(work: WorkDir, telemetry: Telemetry) -> None:
    """What the dataset report warns of. Reports of earlier versions have sentences alone."""
    if not work.data_report.is_file():
        return
    report = json.loads(work.data_report.read_text(encoding="utf-8"))
    for text, found in zip_longest(report["warnings"], report.get("findings", ())):
        telemetry.warning("Dataset", text, finding=Finding.model_validate(found) if found else None)


def keep(work: WorkDir, telemetry: Telemetry) -> None:
    """Begin diagnosis.json with the warnings of prepare, or add them. The data are prepared, so a failure is only a warning."""
    telemetry.diagnosed(0, telemetry.warnings)
    try:
        known = Diagnosis.read(work)
        known.at(known.step, [*known.findings, *telemetry.warnings])[0].write(work)
    except OSError as error:
        telemetry.warning("NoDiagnosis", f"diagnosis.json could not be written: {error.strerror}")
