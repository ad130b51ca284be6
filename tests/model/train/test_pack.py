import gc
import weakref

import pytest

from model.section import updated
from model.train.trainer import Trainer
from tests.support.tiny import UPDATE, tiny


@pytest.mark.parametrize("values", [{}, {"model.name": "moe"}], ids=["gpt", "moe"])
def test_the_memory_of_a_pack_is_freed_without_the_garbage_collector(values):
    # The collector does not know how full a GPU is, and the next pack needs the memory.
    config = updated(tiny({"run.tokens": 2 * UPDATE, "run.rungs": 1}), values)
    gc.collect()
    gc.disable()
    try:
        trainer = Trainer([config] * 2)
        pack, params = weakref.ref(trainer.pack), weakref.ref(trainer.pack.params)
        list(trainer)
        del trainer
        assert pack() is None
        assert params() is None
    finally:
        gc.enable()
