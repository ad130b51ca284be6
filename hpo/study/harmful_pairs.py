"""Warn of a sampler and a pruner that work badly together, as replays of recorded curves show (docs/search.md)."""

from hpo.search.pruners import Halving
from hpo.study.spec import StudyFile

MODELS = ("auto", "tpe", "gp", "cmaes", "nsga2")  # samplers that learn from the results


def harmful_pairs(file: StudyFile) -> list[str]:
    """Return one sentence for each pair of settings of a study file that finds worse trials than its parts."""
    sampler, pruner = file.sampler, file.pruner
    if file.arms is None and isinstance(pruner, Halving) and pruner.min_rungs == 1 and sampler.name in MODELS:
        return [
            f"sampler {sampler.name} with pruner halving from rung 1 found worse trials than without pruning in "
            f"replays, because {sampler.name} learns from values of the first rung, which rank trials badly; use "
            "pruner median, or a larger pruner.min_rungs"
        ]
    return []
