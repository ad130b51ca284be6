"""The key `track` of a study file: one tracker or a list of them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

TrackerName = Literal["mlflow", "wandb", "tensorboard"]


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


TrackerNames = Annotated[tuple[TrackerName, ...], BeforeValidator(_as_list)]
