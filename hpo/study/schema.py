"""The JSON schemas of study files and of configurations, for editors that complete and check YAML.

The schemas follow from the classes that check the files. They have no rules about several keys, such as low < high, and
no quoted numbers, which the checks convert. In everything else, a schema refuses what the checks of one key refuse.
"""

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from hpo.config.validation import union_members
from hpo.search.foreign_ranges import SWEEP_DISTRIBUTIONS, SWEEP_KEYS
from hpo.search.ranges import Choices, Range
from hpo.study.spec import StudyFile
from model.config import TrainConfig

Schema = dict[str, Any]

# Draft 7, because editors support it best. Keys beside "$ref" have no meaning in it except descriptions.
DIALECT = "http://json-schema.org/draft-07/schema#"
DEFS = "#/$defs/"
PARTIAL = "Partial"  # suffix of a definition in which no field is required, because another file has the rest
BASE, OVERRIDES = "Configuration", "FieldsOfConfiguration"


def configuration_schema(kind: type[BaseModel] = TrainConfig) -> Schema:
    """Return the schema of a configuration file. An exported file also has the key `provenance`."""
    definitions = _definitions(kind)
    schema = definitions.pop(kind.__name__)
    provenance = {"type": "object", "description": "Where the configuration comes from, as `hpo export` writes it."}
    schema["properties"] = schema["properties"] | {"provenance": provenance}
    return _document("Configuration of a training run, as `hpo train` reads it", schema, definitions)


def study_schema(kind: type[BaseModel] = TrainConfig) -> Schema:
    """Return the schema of a study file.

    kind: class of the configuration. The fields of TrainConfig are checked only in studies that name no other training
    code.
    """
    definitions = _definitions(StudyFile)
    schema = definitions.pop(StudyFile.__name__)
    own = _definitions(kind)
    own[BASE] = own.pop(kind.__name__)
    fields = dict(_field_schemas(kind, own))
    definitions |= own | _partial_definitions(own)
    definitions[OVERRIDES] = {"type": "object", "properties": fields}
    dotted = {path: _ref(f"{OVERRIDES}/properties/{path}") for path in fields}
    definitions[f"{BASE}{PARTIAL}"]["properties"] |= {"from": {"type": "string", "description": _FROM}, **dotted}
    _accept_short_forms(schema, definitions)
    schema["anyOf"] = [{"required": ["space"]}, {"required": ["arms"]}]
    rules = {"properties": _configured(definitions, fields)}
    if kind is TrainConfig:
        schema |= {"if": {"anyOf": [{"required": [key]} for key in _OWN_CODE if key in schema["properties"]]}}
        schema |= {"else": rules}
    else:
        schema["allOf"] = [rules]
    return _document("Study file of hpo", schema, definitions)


_FROM = "Name of a base, from which the configuration starts."
_OWN_CODE = ("config", "command")  # keys of a study whose configuration is of another class


def _configured(definitions: Mapping[str, Schema], fields: Mapping[str, Schema]) -> Schema:
    """Return the schemas of the keys that hold fields of the configuration."""
    with_base = {"if": {"required": ["from"]}, "then": _ref(f"{BASE}{PARTIAL}"), "else": _ref(BASE)}
    entry = {"anyOf": [_ref("Range"), _ref("Choices")]}
    space = dict.fromkeys(fields, entry)
    return {
        "base": with_base,
        "space": {"properties": space, "additionalProperties": False},
        "baseline": {"items": _ref(OVERRIDES)},
        "arms": {"additionalProperties": _ref(OVERRIDES)},
    }


def _definitions(kind: type[BaseModel]) -> dict[str, Schema]:
    """Return the schemas of a class and of the sections that it contains, by name."""
    tree = kind.model_json_schema(schema_generator=_Generator)
    definitions = {name: _tidied(schema) for name, schema in (tree.pop("$defs", {}) | {kind.__name__: tree}).items()}
    if kind is TrainConfig:
        _select_default_components(definitions)
    return definitions


def _select_default_components(definitions: dict[str, Schema]) -> None:
    """Make the name of a component optional in a configuration: without a name, it is the default component."""
    for key, field in TrainConfig.model_fields.items():
        union = definitions[TrainConfig.__name__]["properties"][key]
        if union.pop("required", None) is not None:
            # In a partial schema, nothing is required, so that this condition never holds.
            union |= {"if": {"not": {"required": ["name"]}}, "then": _ref(type(field.default).__name__)}


class _Generator(GenerateJsonSchema):
    """Writes no titles, which only repeat the names of fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _tidied(node: Any) -> Any:
    """Return a schema with unions that are selected by `name`, and with descriptions of one line."""
    if isinstance(node, list):
        return [_tidied(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidied = {key: value if key in ("default", "const", "enum") else _tidied(value) for key, value in node.items()}
    if isinstance(node.get("description"), str):
        tidied["description"] = " ".join(node["description"].split())
    if (members := tidied.pop("oneOf", None)) is not None:
        tidied["anyOf"] = members
        if tidied.pop("discriminator", None) is not None:
            tidied["required"] = ["name"]
    return tidied


def _partial_definitions(own: Mapping[str, Schema]) -> dict[str, Schema]:
    """Return the schema of a configuration in which nothing is required, with those of its sections that differ."""
    names = {name for name, schema in own.items() if "required" in schema} | {BASE}
    return {f"{name}{PARTIAL}": _partial(own[name], names) for name in names}


def _partial(node: Any, names: Collection[str]) -> Any:
    """Return a schema without required keys at any depth. names: the definitions that have a partial form."""
    if isinstance(node, list):
        return [_partial(item, names) for item in node]
    if isinstance(node, dict):
        return {key: _partial(value, names) for key, value in node.items() if key != "required"}
    is_other = isinstance(node, str) and node.startswith(DEFS) and node.removeprefix(DEFS) in names
    return f"{node}{PARTIAL}" if is_other else node


def _field_schemas(kind: type[BaseModel], definitions: Mapping[str, Schema], prefix: str = "") -> Iterator[Any]:
    """Yield (dotted path, schema) of each field. A field that several components have takes the values of all."""
    found: dict[str, list[Schema]] = {}
    for name, field in kind.model_fields.items():
        sections = [m for m in union_members(field.annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
        for section in sections:
            for path, schema in _field_schemas(section, definitions, f"{prefix}{name}."):
                found.setdefault(path, []).append(schema)
        if not sections:
            named = definitions[kind.__name__ if kind.__name__ in definitions else BASE]
            found.setdefault(f"{prefix}{name}", []).append(copy.deepcopy(named["properties"][name]))
    for path, schemas in found.items():
        plain = [{key: value for key, value in schema.items() if key != "default"} for schema in schemas]
        distinct = [schema for i, schema in enumerate(plain) if schema not in plain[:i]]
        yield path, distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def _accept_short_forms(schema: Schema, definitions: dict[str, Schema]) -> None:
    """Add the forms that the classes accept besides their own fields."""
    objective = schema["properties"]["objective"]
    several = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "uniqueItems": True}
    objective["anyOf"] = [{"type": objective.pop("type")}, several]
    for key in ("sampler", "pruner"):
        union = schema["properties"][key]
        names = [definitions[member["$ref"].removeprefix(DEFS)]["properties"]["name"] for member in union["anyOf"]]
        alone = {"enum": [name["const"] for name in names], "description": union.get("description", "")}
        section = {"anyOf": union.pop("anyOf"), "required": union.pop("required")}
        union["anyOf"] = [alone, section]
    for kind in (Range, Choices):
        properties = definitions[kind.__name__]["properties"]
        required = definitions[kind.__name__].pop("required")
        theirs = {theirs: ours for theirs, ours in SWEEP_KEYS.items() if ours in properties}
        properties |= {
            word: {**properties[ours], "description": f"W&B's name of {ours}."} for word, ours in theirs.items()
        }
        spellings = [[ours, *(word for word, same in theirs.items() if same == ours)] for ours in required]
        definitions[kind.__name__]["allOf"] = [
            {"anyOf": [{"required": [word]} for word in words]} for words in spellings
        ]
        properties["distribution"] = {"enum": list(SWEEP_DISTRIBUTIONS), "description": "Distribution of a W&B sweep."}
    several = schema["properties"]["track"]
    several["anyOf"] = [several["items"], {key: several.pop(key) for key in ("type", "items")}]
    definitions["Budget"]["minProperties"] = 1


def schema_lines(schema: Schema) -> str:
    """Return a schema as JSON text with one line for each key and for each definition."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in schema.items() if key != "$defs"]
    definitions = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in schema["$defs"].items()]
    return "{\n" + ",\n".join(lines) + ',\n "$defs": {\n' + ",\n".join(definitions) + "\n }\n}\n"


def _document(title: str, schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    return {"$schema": DIALECT, "title": title, **schema, "$defs": dict(sorted(definitions.items()))}


def _ref(name: str) -> Schema:
    return {"$ref": f"{DEFS}{name}"}
