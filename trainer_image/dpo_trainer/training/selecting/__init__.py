"""training.selection: the pairs are ranked when a step needs it, and the list of those that are kept is committed."""

from dpo_trainer.training.selecting.selecting import Selecting, selecting_of

__all__ = ["Selecting", "selecting_of"]
