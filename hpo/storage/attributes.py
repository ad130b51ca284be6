"""Keys of the attributes that hpo stores in Optuna's tables."""

# User attributes of a study
UID = "hpo:uid"  # names the study in its slots and its run folder; a study keeps it when it is renamed
SPEC = "hpo:spec"  # the complete study file; its name is the first name of the study, and of its run folder
REGISTERING = "hpo:registering"  # until SPEC is set: number of the slots, and fingerprint of the definition
BUDGET = "hpo:budget"  # the current budget, the only part of a study file that may change later
STARTED = "hpo:started"  # time of the first launch, by the database's clock
ANCHORS = "hpo:anchors"  # losses of n-gram models on the validation split
DATA_ROWS = "hpo:rows"  # rows of the data: read, without text, repeated, and documents that are used
DATA_HASH = "hpo:data"  # hash of the prepared data
STUDY_STATE = "hpo:state"  # active, paused or stopped
ARITHMETIC = "hpo:arithmetic"  # resolved device, precision, compile and attention; {} until a worker resolves them
PROBE_PLAN = "hpo:probe"  # what `probe: auto` has decided; {} until it decides
COORDINATES = "hpo:coordinates"  # result of its last coordinate check
PROTOCOL = "hpo:protocol"  # see hpo.queue.compatibility.PROTOCOL_VERSION

# User attributes of a trial. The dashboard shows them as columns.
ARM = "arm"  # name of its arm, in a study of arms
SEED = "seed"
RETRIED = "retried"  # of a retry: the kind of the trial that failed
FIXED_VALUES = "hpo:set"  # values that are not from the sampler: of a baseline, an arm or a grid point
MACHINE = "hpo:machine"  # versions, engine, threads and git commit
METRICS = "hpo:metrics"  # the metrics of its last rung
PROBES = "probes"  # rung -> objective of the cool-down probe there; null for one that diverged
PROBE_TOKENS = "probe_tokens"  # tokens of all its probes
SUGGESTED_BY = "hpo:suggested"  # what suggested its parameters
PRUNING_DECISION = "hpo:pruned"  # the comparison that pruned it
PAUSED = "paused"  # its place at the mark where it is paused; only while it is paused
MARKS = "hpo:marks"  # what was decided about it at each mark of asha, in order
END_REASON = "hpo:ended"  # why it ended, in one word
IMPORTED = "imported_from"  # of a trial of another program: its place there, such as "row 3 of old.csv"
NOTE = "hpo:note"  # what a reader of its result should know
ERROR = "hpo:error"  # text of the exception that ended it
ATTEMPTS = "hpo:attempts"  # how its earlier attempts ended: [attempt, event type, worker]
IS_FEASIBLE = "hpo:feasible"  # false if it exceeded a limit; the dashboard does not show Optuna's constraints

# Values
FORKED = "forked"  # kind of a trial that `hpo fork` or `hpo import` copied from elsewhere
LIMIT_CONSTRAINTS = {"oom": "memory", "timeout": "seconds"}  # end reason -> name of the constraint in Optuna

# Keys of `about` in the definition of a ladder
LADDER_OF = "ladder_of"  # name of the search that a ladder extends
CELL_FIELDS = "cell_fields"  # fields in which the cells of a ladder differ; only trials of one cell are compared
