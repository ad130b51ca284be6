"""Report the evaluations of a Hugging Face Trainer to hpo, and stop the training that hpo has pruned.

    trainer = Trainer(model, args, callbacks=[HpoCallback()], ...)

Outside of a search the callback does nothing. Written against transformers 4.40 and later.
"""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hpo.trial import current_trial


class HpoCallback(TrainerCallback):  # type: ignore[misc]
    """Reports the metrics of each evaluation under their names, such as eval_loss, at the global step.

    After each evaluation and each logging step, it ends the training if `should_stop` says so.
    """

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> TrainerControl:
        """Report the metrics of an evaluation."""
        numbers = {key: value for key, value in (metrics or {}).items() if isinstance(value, int | float)}
        if state.is_world_process_zero:
            current_trial().report(state.global_step, numbers)
        return self._stopped(control)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        """End the training if hpo has pruned it since."""
        return self._stopped(control)

    @staticmethod
    def _stopped(control: TrainerControl) -> TrainerControl:
        if current_trial().should_stop():
            control.should_training_stop = True
        return control
