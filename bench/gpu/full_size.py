"""Train the bases in their full size for 40 updates of their own batch, in bf16, with the Trainer."""

import statistics
import time

import torch

from bench.gpu.networks import base_config, data_of, flops_per_token, n_weights, with_compile
from bench.gpu.records import Emit, Row, Settings
from bench.gpu.timing import gigabytes, peak_memory, product_rates, reset_peak, seconds_of, spread
from model.config import TrainConfig
from model.data.prepared import PreparedData
from model.errors import is_out_of_memory
from model.memory.capacity import free_memory
from model.memory.estimate import estimate_memory
from model.section import updated
from model.train.trainer import Trainer

TABLE = "Full-size networks"
WARM, ROUNDS, UPDATES = 5, 5, 7  # 40 updates: 5 to warm up, then 5 rounds of 7


def measure(settings: Settings, emit: Emit, base: str, compiled: bool = False, updates: int = UPDATES) -> None:
    """Emit speed, MFU and memory of one base. updates: of each of five rounds; 0: compile only, by one update and a
    validation.

    If its batch does not fit, halve it and accumulate twice as often.
    """
    config = with_compile(base_config(base, settings), compiled)
    prepared = data_of(config, base, settings.tiny)
    product = product_rates(settings, ["bf16"])["bf16"]
    reset_peak(settings.device)
    while True:
        needed, free = estimate_memory(config, prepared.vocab_size).total, free_memory(settings.device)
        problem = f"by estimate {gigabytes(needed)} GB of {gigabytes(free)} GB" if needed > free else ""
        if not problem or config.run.batch_size % 2:
            try:
                return train(
                    settings, emit, base, config, prepared, product, min(updates, 1) if settings.tiny else updates
                )
            except Exception as error:
                if not is_out_of_memory(error) or config.run.batch_size % 2:
                    raise
                problem = str(error).partition("\n")[0][:200]
        emit("Did not fit", network=base, batch=config.run.batch_size, reason=problem)
        reset_peak(settings.device)
        run = config.run
        config = updated(config, {"run.batch_size": run.batch_size // 2, "run.grad_accum": run.grad_accum * 2})


def train(
    settings: Settings,
    emit: Emit,
    base: str,
    config: TrainConfig,
    prepared: PreparedData,
    product: float,
    updates: int,
) -> None:
    """Train and validate, and emit a row. product: operations per second of a matrix product."""
    vocab_size, accum, tokens = prepared.vocab_size, config.run.grad_accum, config.update_tokens()
    trainer = Trainer([config], prepared)
    if not updates:
        first = seconds_of(lambda: trainer._train(accum), settings.device)
        trainer.validation.evaluate()
        return emit("Compilation", network=base, **{"first update s": round(first, 1)})
    first = seconds_of(lambda: trainer._train(accum), settings.device)
    second = seconds_of(lambda: trainer._train(accum), settings.device)
    # A part that is stopped later has at least this.
    speed = {"seconds": round(second, 3), "tokens/s": round(tokens / second)}
    emit("Full-size networks, second update", network=base, **speed)
    trainer._train((WARM - 2) * accum)
    rounds = [seconds_of(lambda: trainer._train(updates * accum), settings.device) for _ in range(ROUNDS)]
    rates = [updates * tokens / seconds for seconds in rounds]
    began = time.perf_counter()
    loss = trainer.validation.evaluate().nats[0] / prepared.splits["val"].n_targets
    rate = statistics.median(rates)
    emit(
        TABLE,
        network=base,
        parameters=f"{n_weights(config.model, vocab_size)[0] / 1e6:.1f} M",
        compile=trainer.shared.run.compile,
        batch=f"{config.run.batch_size} x {config.model.context}" + (f" x {accum}" if accum > 1 else ""),
        **{"tokens/s": round(rate), "spread": spread(rates)},
        MFU=f"{rate * flops_per_token(config.model, vocab_size) / product:.1%}",
        **{"first update s": round(first, 1), "validation s": round(time.perf_counter() - began, 2)},
        **{"val loss": round(loss, 3)},
        **_memory(settings, config, vocab_size),
    )


def _memory(settings: Settings, config: TrainConfig, vocab_size: int) -> Row:
    """Return the columns of memory: of tensors, by estimate, and what the allocator holds."""
    estimate, peak = estimate_memory(config, vocab_size).total, peak_memory(settings.device)
    if peak is None:
        return {"peak GB": None, "estimate GB": gigabytes(estimate)}
    ratio = {"peak / estimate": round(peak / estimate, 2)}
    return {"peak GB": gigabytes(peak), "estimate GB": gigabytes(estimate), **ratio} | {
        "reserved GB": gigabytes(torch.cuda.max_memory_reserved())
    }
