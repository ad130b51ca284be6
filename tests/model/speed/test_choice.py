"""Compiled steps and packs are chosen where they end the work earlier, by what was measured on this machine."""

import json
import math

import pytest

from model.data.prepare import prepare
from model.section import updated
from model.speed import timing
from model.speed.choice import COMPILE_S, Work, choose_compile, choose_pack
from model.speed.timing import Speed, remembered, speed_of
from tests.support.tiny import UPDATE, tiny


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that stores speeds in the table of a new machine: (runs, compiled, seconds of a step)."""
    config = tiny()
    prepared = prepare(config.data, config.tokenizer)
    monkeypatch.setenv("HPO_CACHE", str(tmp_path))

    def measured(*speeds):
        table = {}
        for runs, compiled, step_s in speeds:
            own = updated(config, {"run.compile": compiled})
            table[timing._key(own, prepared.vocab_size, runs)] = Speed(step_s, 20.0)
        timing._file().write_text(json.dumps(table))
        return config, prepared

    return measured


def work(hours: float, **values) -> Work:
    """Return work of some hours of steps of 2 ms."""
    return Work(hours * 3600 / 0.002 * UPDATE, math.inf, **values)


@pytest.mark.parametrize(
    ("hours", "compiled_s", "shapes", "chosen"),
    [
        (1.0, 0.0005, 1, "on"),
        (1.0, 0.0019, 1, "on"),
        (1.0, 0.0021, 1, "off"),  # compiled steps are slower
        (0.01, 0.0019, 1, "off"),  # they save 2 of 36 s, and each worker loads the compiler
        (1.0, 0.0019, 12, "off"),  # eleven more shapes take longer to compile than they save
        (1.0, 0.0005, 12, "on"),
    ],
)
def test_compiled_steps_are_chosen_if_they_end_the_work_earlier(machine, hours, compiled_s, shapes, chosen):
    config, prepared = machine((1, "off", 0.002), (1, "on", compiled_s))
    notes: list[str] = []
    assert choose_compile(config, prepared, work(hours, shapes=shapes), notes.append) == chosen
    assert notes == []  # nothing is compiled


def test_work_that_ends_before_the_compiler_is_neither_measured_nor_compiled(machine):
    config, prepared = machine()
    assert choose_compile(config, prepared, Work(24 * UPDATE, math.inf), pytest.fail) == "off"
    assert json.loads(timing._file().read_text()) == {}
    # A step of 2 ms can save three quarters of its time, which is less than compiling takes.
    config, prepared = machine((1, "off", 0.002))
    assert choose_compile(config, prepared, work(COMPILE_S / 3600), pytest.fail) == "off"
    assert choose_compile(config, prepared, Work(1e12, 20.0), pytest.fail) == "off"  # of a study of 20 s


@pytest.mark.parametrize(
    ("steps", "trials", "size"),
    [
        ({4: 0.003, 16: 0.006, 64: 0.030}, 1000, 16),  # of 64 runs no faster than of 16
        ({4: 0.003, 16: 0.006, 64: 0.010}, 1000, 64),
        ({4: 0.003, 16: 0.006, 64: 0.010}, 24, 4),  # at most a quarter of the trials
        ({4: 0.0079}, 1000, 1),
    ],
)
def test_the_size_of_packs_grows_while_a_larger_pack_is_faster(machine, steps, trials, size):
    config, prepared = machine((1, "off", 0.002), *((runs, "off", step_s) for runs, step_s in steps.items()))
    notes: list[str] = []
    config = updated(config, {"run.compile": "off"})
    assert choose_pack(config, prepared, work(1.0, trials=trials), notes.append) == size
    assert notes[-1].startswith(f"--pack auto: {size} (1: 32,000")
    assert notes[-1].endswith("; at most a quarter of 24 trials)") == (trials == 24)


def test_a_speed_is_measured_once_and_remembered(machine):
    config, prepared = machine()
    assert remembered(config, prepared.vocab_size) is None
    speed = speed_of(config, prepared)
    assert 0 < speed.step_s < 1
    assert speed_of(config, prepared) == remembered(config, prepared.vocab_size) == speed
    assert remembered(config, prepared.vocab_size, 2) is None
    assert remembered(updated(config, {"model.n_embd": 32}), prepared.vocab_size) is None
    timing._file().write_text("damaged")
    assert remembered(config, prepared.vocab_size) is None
