"""Train the bases in their full size for 40 updates of their own batch, in bf16, with the Trainer."""

import statistics
import time

import torch

from bench.gpu.networks import base_config, data_of, flops_per_token, n_weights, with_compile
from bench.gpu.records import Emit, Settings
from bench.gpu.timing import gigabytes, peak_memory, product_rates, reset_peak, seconds_of, spread
from model.config import TrainConfig
from model.data.prepared import PreparedData
from model.errors import is_out_of_memory
from model.memory.estimate import estimate_memory
from model.section import updated
from model.train.trainer import Trainer

TABLE = "Full-size networks"
WARM, ROUNDS, UPDATES = 5, 5, 7  # 40 updates: 5 to warm up, then 5 rounds of 7


def measure(settings: Settings, emit: Emit, base: str, compiled: bool = False) -> None:
    """Emit speed, MFU and memory of one base. If it does not fit, halve its batch and accumulate twice as often."""
    config = with_compile(base_config(base, settings), compiled)
    prepared = data_of(config, base, settings.tiny)
    product = product_rates(settings, ["bf16"])["bf16"]
    while True:
        try:
            return train(settings, emit, base, config, prepared, product)
        except Exception as error:
            if not is_out_of_memory(error) or config.run.batch_size % 2:
                raise
            emit("Did not fit", network=base, batch=config.run.batch_size, error=str(error).partition("\n")[0][:200])
        reset_peak(settings.device)
        run = config.run
        config = updated(config, {"run.batch_size": run.batch_size // 2, "run.grad_accum": run.grad_accum * 2})


def train(
    settings: Settings, emit: Emit, base: str, config: TrainConfig, prepared: PreparedData, product: float
) -> None:
    """Train 40 updates and one validation, and emit a row. product: operations per second of a matrix product."""
    vocab_size, accum, tokens = prepared.vocab_size, config.run.grad_accum, config.update_tokens()
    estimate = estimate_memory(config, vocab_size).total
    reset_peak(settings.device)
    trainer = Trainer([config], prepared)
    first = seconds_of(lambda: trainer._train(accum), settings.device)
    trainer._train((WARM - 1) * accum)
    updates = 1 if settings.tiny else UPDATES
    rounds = [seconds_of(lambda: trainer._train(updates * accum), settings.device) for _ in range(ROUNDS)]
    began = time.perf_counter()
    scores = trainer.validation.evaluate()
    validation = time.perf_counter() - began
    rates = [updates * tokens / seconds for seconds in rounds]
    peak = peak_memory(settings.device)
    total, _ = n_weights(config.model, vocab_size)
    mfu = statistics.median(rates) * flops_per_token(config.model, vocab_size) / product
    emit(
        TABLE,
        network=base,
        parameters=f"{total / 1e6:.1f} M",
        compile=trainer.shared.run.compile,
        batch=f"{config.run.batch_size} x {config.model.context}" + (f" x {accum}" if accum > 1 else ""),
        **{
            "tokens/s": round(statistics.median(rates)),
            "spread": spread(rates),
            "MFU": f"{mfu:.1%}",
            "first update s": round(first, 1),
            "validation s": round(validation, 2),
            "val loss": round(scores.nats[0] / prepared.splits["val"].n_targets, 3),
            "peak GB": gigabytes(peak),
            "estimate GB": gigabytes(estimate),
            "peak / estimate": None if peak is None else round(peak / estimate, 2),
            "reserved GB": gigabytes(torch.cuda.max_memory_reserved()) if settings.device == "cuda" else None,
        },
    )
