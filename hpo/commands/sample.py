"""`hpo sample`: generate text from a trained run."""

from pathlib import Path

from hpo.errors import Problem
from hpo.runs import checkpoints


def sample_text(run: Path, prompt: str, tokens: int, temperature: float, top_k: int | None, seed: int) -> str:
    """Return text that continues a prompt, generated from the checkpoint of a run.

    Raises:
        Problem: the run has no checkpoint, or a value is out of range.
    """
    from model.train.generate import generate

    folder = run / checkpoints.KEPT if (run / checkpoints.KEPT).is_dir() else run
    if not (folder / "state.safetensors").is_file():
        folder = max(folder.glob("rung-*"), default=folder)  # run.keep_checkpoints: all
    try:
        return generate(folder, prompt, tokens, temperature, top_k, seed)
    except ValueError as error:
        raise Problem(str(error)) from None
