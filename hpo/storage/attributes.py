"""Keys of the attributes that studies and trials hold in Optuna's tables."""

# User attributes of a study
BUDGET = "hpo:budget"  # the budget, which alone may change while a study runs


STARTED = "hpo:started"  # first launch, by the database's clock


ANCHORS = "hpo:anchors"  # unigram and bigram loss of its validation split


DATA_HASH = "hpo:data"  # hash of its prepared data


STUDY_STATE = "hpo:state"  # active, paused or stopped


PROTOCOL = "hpo:protocol"  # version of what workers of one study agree on


FORKED = "forked"  # kind of a trial that was carried over from another study


# User attributes of a trial
FIXED_VALUES = "hpo:set"  # the fixed values of a baseline, of an arm or of a point of a grid


ARM = "arm"  # of a study of arms, the name of its own; the dashboard shows both as columns


SEED = "seed"


RETRIED = "retried"  # of a trial that is tried again, what the first try was


MACHINE = "hpo:machine"  # versions, threads, git commit


METRICS = "hpo:metrics"  # its last metrics


SUGGESTED_BY = "hpo:suggested"  # where its parameters come from


PRUNING_DECISION = "hpo:pruned"  # the comparison that pruned it


END_REASON = "hpo:ended"  # why it ended, in one word


ERROR = "hpo:error"  # the text of the exception that ended it


ATTEMPTS = "hpo:attempts"  # how its earlier attempts ended: [attempt, word, worker]


IS_FEASIBLE = "hpo:feasible"  # false where it met a limit; the dashboard does not show Optuna's constraints


SPEC = "hpo:spec"  # user attribute of a study: the whole study file


LIMIT_CONSTRAINTS = {"oom": "memory", "timeout": "seconds"}  # word -> name of Optuna's constraint
