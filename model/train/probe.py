"""Cool-down probes: what a run would reach if its learning rate fell now. The run itself continues unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from model.train.metrics import Metrics
from model.train.pack import Pack
from model.train.run_state import RunState
from model.train.step import PackOptimizer


def cool_down_branch(run: RunState, share: float) -> RunState:
    """Return a copy of a run at a rung that ends after some more updates, at least one, in which its rate falls.

    share: of the tokens of the run.

    Raises:
        ValueError: the run is not at a rung, or its rest is shorter than the share.
    """
    if run.micro_step != run.rung_start or run.micro_step == 0:
        raise ValueError("a run can be probed only at one of its rungs")
    planned = run.marks[-1] // run.run.grad_accum
    updates, left = max(1, round(share * planned)), planned - run.n_updates()
    if updates > left and share * planned <= left + 1:  # by rounding of the marks alone
        updates = left
    if updates > left or not left:
        raise ValueError(f"a probe must not be longer than the rest of the run, {left} updates, got {updates}")
    return run.cooling_down(updates)


def probe_metrics(run: RunState, metrics: Metrics) -> dict[str, float]:
    """Return the metrics of a probe. run: the run that was probed. metrics: of its copy after the probe."""
    scores = {name: getattr(metrics, name) for name in ("val_loss", "val_bpb", "ema_val_loss", "ema_val_bpb")}
    probed = {f"probe_{name}": score for name, score in scores.items() if score is not None}
    return {**probed, "probe_tokens": metrics.tokens - run.n_tokens()}


def copied_tensors(pack: Pack) -> list[Tensor]:
    """Return the tensors of a pack that a probe copies and later restores in place, as compiled steps read them."""
    params = pack.params
    norms = [params.norms.grad_norms, params.norms.update_ratios, pack.scales]
    return [*params.blocks().values(), *params.backups.values(), params.grads, *norms]


@contextmanager
def unchanged(pack: Pack, optimizer: PackOptimizer, sums: Tensor) -> Iterator[None]:
    """Restore all runs of a pack at the end of a `with` block, to the last bit.

    sums: of their training losses, (K,).
    """
    tensors = [*copied_tensors(pack), sums, optimizer.measured, optimizer.finite, optimizer.sound]
    tensors += [] if optimizer.guard is None else [optimizer.guard.state]
    # In the memory of the machine: a GPU that just holds the runs would have no room for copies.
    copies = [tensor.to("cpu", copy=True) for tensor in tensors]
    numbers = list(pack.loss_scales), list(pack.clean_updates)
    try:
        yield
    finally:
        for tensor, saved in zip(tensors, copies, strict=True):
            tensor.copy_(saved)
        pack.loss_scales, pack.clean_updates = numbers
