"""Several objectives in a study file: `objective: [val_loss, seconds]`."""

from typing import Any

COSTS = ("seconds", "tokens", "parameters", "memory")  # objectives beside the loss that the GPT trainer measures


def split_objectives(tree: Any) -> Any:
    """Return the keys of a study file with the first objective as `objective` and the whole list as `objectives`.

    Raises:
        ValueError: the list is empty, repeats a name or holds something else, or it stands under `objectives`.
    """
    if not isinstance(tree, dict):
        return tree
    names, stored = tree.get("objective"), tree.get("objectives")
    if not isinstance(names, list | tuple):
        if stored and isinstance(stored, list | tuple) and stored[0] != names:  # in a study file, not in a stored study
            raise ValueError(f"objectives: must be omitted; write the list as objective, got {list(stored)!r:.80}")
        return tree
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ValueError(f"objective: must be a name, or a list of different names, got {list(names)!r:.80}")
    return {**tree, "objective": names[0], "objectives": list(names) if len(names) > 1 else []}
