"""Errors that end a phase with an exit code of the shared table."""

from dpo_operator.api.exitcodes import ExitCode


class TrainerError(Exception):
    """A failure with a known cause. The message says what was expected, what was found and what to do.

    Lone surrogates, which a column name can contain, are escaped, because the message is written to files.
    """

    def __init__(self, exit_code: ExitCode, message: str) -> None:
        super().__init__(message.encode(errors="backslashreplace").decode())
        self.exit_code = exit_code


def first_line(error: BaseException, limit: int = 300) -> str:
    """First line of an error's message, at most `limit` characters; "" when it has no message."""
    text = str(error).strip()
    return text.splitlines()[0][:limit] if text else ""


def bad_dataset(message: str) -> TrainerError:
    """Too many rows are unusable, or none is left."""
    return TrainerError(ExitCode.BAD_DATASET, message)


def input_not_found(message: str) -> TrainerError:
    """A model, a dataset or a file does not exist."""
    return TrainerError(ExitCode.INPUT_NOT_FOUND, message)


def invalid_configuration(message: str) -> TrainerError:
    """The job's settings do not fit the model, the data or each other."""
    return TrainerError(ExitCode.INVALID_CONFIGURATION, message)


def volume_error(message: str) -> TrainerError:
    """The work volume is full, read-only or failing."""
    return TrainerError(ExitCode.VOLUME_ERROR, message)
