"""The scale of a run: its length, its batch, and the size of its network."""

from pydantic import BaseModel

from model.section import flat

SCALE_FIELDS = {
    *("run.tokens", "run.batch_size", "run.grad_accum"),
    *("model.context", "model.n_layer", "model.n_head", "model.n_embd"),
}


def scale_fields(config: BaseModel) -> dict[str, int]:
    """Return the fields of length, batch and size of a TrainConfig, by dotted path."""
    return {path: value for path, value in flat(config).items() if path in SCALE_FIELDS}
