"""The class of a study's configurations: one that the user has written, or that of a command."""

from pydantic import BaseModel

from hpo.config.importer import model_class
from hpo.study.command_config import command_config
from hpo.study.spec import StudyFile


def config_class(file: StudyFile, key: str = "config") -> type[BaseModel]:
    """Return the class of the configurations of a study.

    key: name of the key `config` in messages.

    Raises:
        Problem: the class cannot be imported.
    """
    if file.command is None:
        return model_class(file.config, key)
    return command_config(file.command, file.env, file.base, file.space, (file.arms or {}).values())
