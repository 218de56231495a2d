"""The OpenAPI document is true: whatever it allows is answered as it says, and what it forbids is refused."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

if TYPE_CHECKING:
    from schemathesis.schemas import BaseSchema

pytestmark = pytest.mark.torch

EXAMPLES = 30
"""For each operation, of what is allowed, and as many of what is not."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openapi")


@pytest.fixture(scope="module")
def served(folder: Path) -> "Iterator[tuple[BaseSchema, dict[str, str]]]":
    import schemathesis

    from serve.tokens import Tokens
    from tests.serve.serving import application, bearer, listening, token_file

    file, secrets = token_file(folder, root="admin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_SPOOL", str(folder))
        with listening(application(tokens=Tokens(file), max_mb=0.5, jobs=10_000)) as address:
            # The token is a true one, whatever else is wrong; parameters that nobody knows are not looked at.
            generation = {"with-security-parameters": False, "allow-extra-parameters": False}
            config = schemathesis.Config.from_dict({"generation": generation})
            document = schemathesis.openapi.from_url(f"{address}/openapi.json", config=config)
            yield document, bearer(secrets["root"])


def operations(schema: "BaseSchema") -> list[Any]:
    found: Any = schema.get_all_operations()
    return [one.ok() for one in found]


def test_every_address_is_told(served: "tuple[BaseSchema, dict[str, str]]") -> None:
    told = {f"{one.method.upper()} {one.path}" for one in operations(served[0])}
    assert {
        *("GET /health", "GET /metrics", "GET /v1/models", "POST /v1/segment", "POST /v1/jobs"),
        *("GET /v1/jobs/{id}", "DELETE /v1/jobs/{id}", "GET /v1/jobs/{id}/result"),
        *("GET /v2", "GET /v2/health/live", "GET /v2/health/ready"),
        *(
            f"{method} /v2/models/{{model}}{version}{rest}"
            for version in ("", "/versions/{version}")
            for method, rest in (("GET", ""), ("GET", "/ready"), ("POST", "/infer"))
        ),
    } == told


def test_every_address_says_what_a_killed_copy_is_answered_with(
    served: "tuple[BaseSchema, dict[str, str]]",
) -> None:
    for one in operations(served[0]):
        told = one.definition.raw["responses"]["500"]
        assert "Ray's proxy says 500 in plain text; send it again" in told["description"]
        assert set(told["content"]) == {"application/problem+json", "text/plain"}


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_answers_are_what_the_document_says(served: "tuple[BaseSchema, dict[str, str]]", mode: str) -> None:
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    schema, headers = served
    held = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
        checks.negative_data_rejection,
        checks.unsupported_method,
        checks.ignored_auth,
    ]
    # Not positive_data_acceptance: a body of any bytes is allowed by its schema, and is no scan.
    asked = []
    for operation in operations(schema):
        try:
            _ask(operation.as_strategy(generation_mode=GenerationMode[mode]), headers, held)
        except Unsatisfiable:  # nothing about some operations can be wrong
            continue
        asked.append(operation.path)
    assert {"/v1/segment", "/v1/jobs", "/v2/models/{model}/infer"} <= set(asked)


def _ask(strategy: Any, headers: dict[str, str], held: list[Any]) -> None:
    @seed(0)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def asked(data: Any) -> None:
        data.draw(strategy).call_and_validate(headers=headers, checks=held)

    asked()


@pytest.mark.parametrize(
    ("accept", "media_type"), [("application/json", "application/json"), ("*/*", "application/gzip")]
)
def test_answers_to_scans_are_what_the_document_says(
    served: "tuple[BaseSchema, dict[str, str]]", tmp_path: Path, accept: str, media_type: str
) -> None:
    from tests.serve.serving import scan

    schema, headers = served
    case = schema["/v1/segment"]["POST"].Case(body=scan(tmp_path), media_type="application/octet-stream")
    answer = case.call_and_validate(headers={**headers, "accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, [media_type])


def test_answers_of_the_protocol_are_what_the_document_says(
    served: "tuple[BaseSchema, dict[str, str]]", tmp_path: Path
) -> None:
    from tests.serve.serving import scan

    schema, headers = served
    data = base64.b64encode(scan(tmp_path)).decode()
    body: Any = {"inputs": [{"name": "scan", "datatype": "BYTES", "shape": [1], "data": [data]}]}
    case = schema["/v2/models/{model}/infer"]["POST"].Case(
        body=body, media_type="application/json", path_parameters={"model": "bright"}
    )
    assert case.call_and_validate(headers=headers).status_code == 200


def test_jobs_are_told_as_the_document_says(
    served: "tuple[BaseSchema, dict[str, str]]", tmp_path: Path
) -> None:
    from tests.serve.serving import scan, until

    schema, headers = served
    case = schema["/v1/jobs"]["POST"].Case(body=scan(tmp_path), media_type="application/octet-stream")
    name = case.call_and_validate(headers=headers).json()["id"]
    told = schema["/v1/jobs/{id}"]["GET"].Case(path_parameters={"id": name})
    until(lambda: told.call_and_validate(headers=headers).json()["state"] == "done")
    result = schema["/v1/jobs/{id}/result"]["GET"].Case(path_parameters={"id": name})
    assert result.call_and_validate(headers=headers).status_code == 200
    gone = schema["/v1/jobs/{id}"]["DELETE"].Case(path_parameters={"id": name})
    assert gone.call_and_validate(headers=headers).status_code == 204
