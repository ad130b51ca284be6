"""`hpo schema`: print the JSON schema of study files or of configurations."""

import json

from hpo.study.load import load_study
from hpo.study.schema import configuration_schema, study_schema
from model.config import TrainConfig


def schema_text(kind: str, study: str | None) -> str:
    """Return a schema as JSON.

    kind: study or config. study: name or path of a study whose configuration class the schema describes, None for the
    configuration of the GPT trainer.

    Raises:
        Problem: the study is not valid.
    """
    config = TrainConfig if study is None else type(load_study(study).base)
    schema = study_schema(config) if kind == "study" else configuration_schema(config)
    return json.dumps(schema, indent=2)
