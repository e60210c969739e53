"""The OpenAPI document says what the server does: requests made up from it are answered so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import jsonschema
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.compute import LocalFleet, local_backend
from orchestrator.serve.control.link import Link
from orchestrator.serve.control.operator import Operator
from orchestrator.serve.control.table import VersionSpec
from orchestrator.serve.gateway import create_app
from orchestrator.serve.routes.shared import GatewaySettings
from tests.serve.live import Live, live_server
from tests.serve.serving import make_run, make_text_run

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 15
METHODS = ("get", "put", "post", "delete", "patch")


def document(**settings: Any) -> dict[str, Any]:
    """The document of a server whose models can be changed."""
    backend, operator = local_backend([]), Operator(LocalFleet())
    link = Link(operator, backend, LocalFleet().connect)
    return create_app(backend, GatewaySettings(**settings), operator, link).openapi()


DOCUMENT = document()
API = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [
    (method, path)
    for path, operations in sorted(DOCUMENT["paths"].items())
    for method in sorted(operations)
]


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("runs")
    specs = [
        VersionSpec("shoes", "1", str(make_run(folder / "shoes"))),
        VersionSpec("mail", "1", str(make_text_run(folder / "mail"))),
    ]
    config = ServeConfig(executor="torch", limits={"receive_seconds": 2})
    with live_server(specs, config=config) as server:
        yield server


def requests_to(method: str, path: str) -> st.SearchStrategy[Any]:
    """Requests as the document describes them, and others; most of them to a model that exists."""
    operation = API[path][method.upper()]
    made = st.one_of([operation.as_strategy(generation_mode=one) for one in GenerationMode])

    def to_a_model(drawn: tuple[Any, str | None]) -> Any:
        case, name = drawn
        if name and "name" in (case.path_parameters or {}):
            case.path_parameters["name"] = name
            if "version" in case.path_parameters:
                case.path_parameters["version"] = "1"
        return case

    return st.tuples(made, st.sampled_from(["shoes", "shoes", "mail", None])).map(to_a_model)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_made_up_requests_are_answered_as_documented(live, method, path):
    @hypothesis.settings(
        max_examples=EXAMPLES,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(requests_to(method, path))
    def answered(case: Any) -> None:
        answer = case.call(base_url=live.url, timeout=180)
        # Who asks within microseconds is told that time ran out.
        assert answer.status_code < 500 or answer.status_code == 504, answer.text
        case.validate_response(answer, checks=CHECKS)

    answered()
    assert live.client.get("/v2/health/live").status_code == 200


# --- the document itself -------------------------------------------------------------------


def operations(made: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, listed in made["paths"].items():
        for method in METHODS:
            if method in listed:
                yield method, path, listed[method]


def test_every_schema_is_there_and_sound():
    text = str(DOCUMENT)
    schemas = DOCUMENT["components"]["schemas"]
    named = {one.split("'")[0] for one in text.split("#/components/schemas/")[1:]}
    assert named <= set(schemas) and "#/$defs" not in text
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_refusal_is_an_error_in_json():
    for method, path, operation in operations(DOCUMENT):
        statuses = set(operation["responses"])
        assert "422" not in statuses, path
        assert {"500", "503"} <= statuses
        assert ("404" in statuses) >= ("{name}" in path)
        assert ({"408", "413", "415"} <= statuses) == ("requestBody" in operation), (method, path)
        for status, response in operation["responses"].items():
            assert "X-Request-Id" in response["headers"]
            assert ("Retry-After" in response["headers"]) == (status in ("429", "503"))


def test_requests_to_models_say_what_they_take():
    infer = DOCUMENT["paths"]["/v2/models/{name}/infer"]["post"]
    assert set(infer["requestBody"]["content"]) == {"application/json", "application/octet-stream"}
    assert set(infer["responses"]["200"]["content"]) == set(infer["requestBody"]["content"])
    assert "Inference-Header-Content-Length" in infer["responses"]["200"]["headers"]
    predict = DOCUMENT["paths"]["/predict/{name}"]["post"]
    assert set(predict["requestBody"]["content"]) == {
        *("image/png", "image/jpeg", "text/plain", "multipart/form-data", "application/json")
    }
    for one in (infer, predict):
        named = {parameter["name"] for parameter in one["parameters"]}
        assert {"X-Orch-Client", "X-Orch-Deadline-Ms", "version", "name"} <= named
        assert {"400", "404", "408", "413", "415", "429", "500", "503", "504"} <= set(
            one["responses"]
        )


def test_keys_and_rates_are_in_it_where_they_are_asked_for():
    assert "securitySchemes" not in DOCUMENT["components"]
    guarded = document(key_digests=("d",), requests_per_second=5)
    assert set(guarded["components"]["securitySchemes"]) == {"bearer", "key"}
    for _, path, operation in operations(guarded):
        probe = path.startswith("/v2/health")
        assert ("security" in operation) == ("401" in operation["responses"]) == (not probe)
        assert ("429" in operation["responses"]) >= (not probe)
