"""The file's JSON Schema, for editors and other programs."""

from __future__ import annotations

from typing import Any

from orchestrator.config.experiment import ExperimentConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a file, with every part that is registered by now."""
    schema = ExperimentConfig.model_json_schema(by_alias=True)
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "One other file, relative to this one, that this file is laid over.",
    }
    # What a file leaves out may stand in the file that it extends.
    required = schema.pop("required", [])
    schema["if"] = {"not": {"required": ["extends"]}}
    schema["then"] = {"required": required}
    return {"$schema": DIALECT, **schema, "title": "orch experiment"}
