"""The methods of `hpo.Study` that control its workers by requests in the storage, from any machine."""

from collections.abc import Mapping
from typing import Any

from hpo.api.handle import StudyHandle
from hpo.api.options import override_words


class ControlledStudy(StudyHandle):
    """A study whose workers may run elsewhere. Each method returns a sentence about what they will do."""

    def pause(self, because: str = "") -> str:
        """Pause the study: its workers finish their rung and wait. because: stored with the event."""
        return self._set_state("paused", because)

    def resume(self, because: str = "") -> str:
        """Resume a paused or stopped study."""
        return self._set_state("active", because)

    def stop(self, because: str = "") -> str:
        """Stop the study: its workers finish their rung and exit. `launch` continues it."""
        return self._set_state("stopped", because)

    def _set_state(self, state: str, because: str) -> str:
        from hpo.commands.control import set_study_state  # these commands import Optuna

        with self._write() as store:
            return set_study_state(store, self.name, state, because)

    def kill(self, number: int) -> str:
        """Stop one trial at its next rung and mark it as failed."""
        from hpo.commands.control import kill_trial

        with self._write() as store:
            return kill_trial(store, self.name, number)

    def retry(self, number: int | None = None) -> str:
        """Run a failed trial again, or all failed trials for None, in addition to the budget."""
        from hpo.commands.enqueue import retry_trials

        with self._write() as store:
            return "\n".join(retry_trials(store, self.name, number, number is None))

    def enqueue(self, values: Mapping[str, Any]) -> str:
        """Add a trial in addition to the budget; values: field -> value, such as {"optimizer.lr": 3e-3}."""
        from hpo.commands.enqueue import enqueue_trial

        with self._write() as store:
            return "\n".join(enqueue_trial(store, self.name, override_words(values, "values")))
