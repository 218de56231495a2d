"""The OpenAPI document, and the page that shows it. Decides how the interface is told, not what it is.

The page is written here, from the document alone: the usual ones load their scripts from elsewhere,
and a hospital's network has no elsewhere.
"""

import html
import json
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.responses import HTMLResponse, Response

from serve import answers
from serve.problems import Problem
from tutelage import __version__

_BINARY = {"schema": {"type": "string", "format": "binary"}}

_ACCEPT = {
    "name": "Accept",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Form of the answer: "
    + ", ".join(f"`{media[0]}` ({kind})" for kind, media in answers.MEDIA.items())
    + ".",
}

ACCEPTS: dict[str, Any] = {"parameters": [_ACCEPT]}

SCAN_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The file itself: .nii, .nii.gz, .nrrd, or a zip of the files of one DICOM series.",
        "content": {"application/octet-stream": _BINARY},
    },
    "parameters": [_ACCEPT],
}

LOCATION: dict[str, Any] = {
    "location": {"schema": {"type": "string"}, "description": "Where to ask how far it is."}
}

_HEADERS = {
    "x-tutelage-specialist": "Digest of the specialist.",
    "x-tutelage-model": "Name of the model.",
    "x-tutelage-volumes-ml": "JSON: milliliters by structure.",
    "x-tutelage-seconds": "JSON: seconds by stage.",
    "x-tutelage-review": "JSON: structures that a person should look at.",
    "content-disposition": "What to call the file.",
}

ANSWER: dict[str, Any] = {
    "description": "A mask on the scan's own grid, or what is in it, in the form that was accepted.",
    "content": {
        "application/gzip": _BINARY,
        "application/dicom": _BINARY,
        "application/json": {"schema": {"$ref": "#/components/schemas/Findings"}},
    },
    "headers": {name: {"schema": {"type": "string"}, "description": told} for name, told in _HEADERS.items()},
}

_FINDING = {
    "structure": {"type": "string"},
    "value": {"type": "integer", "description": "Label value in the mask."},
    "voxels": {"type": "integer"},
    "volume_ml": {"type": "number"},
    "components": {"type": "integer"},
    "confidence": {"type": ["number", "null"]},
    "needs_review": {"type": "boolean"},
    "reasons": {"type": "array", "items": {"type": "string"}},
}

_FINDINGS: dict[str, Any] = {
    "type": "object",
    "description": "What is in a mask, without voxels.",
    "required": ["request_id", "model", "structures", "needs_review", "grid", "seconds"],
    "properties": {
        "request_id": {"type": "string"},
        "model": {"type": "object"},
        "structures": {
            "type": "array",
            "items": {"type": "object", "required": list(_FINDING), "properties": _FINDING},
        },
        "needs_review": {"type": "boolean"},
        "grid": {"type": "object"},
        "seconds": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.4 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .7rem; background: #8881; border-radius: .4rem; }
details { border: 1px solid #8885; border-radius: .4rem; margin: .5rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; }
td, th { text-align: left; vertical-align: top; padding: .1rem 1rem .1rem 0; }
.lock { float: right; opacity: .7; }
"""


def install(app: FastAPI, schemas: Iterable[type[BaseModel]]) -> None:
    """Have an application tell its document at /openapi.json and show it at /docs.

    `schemas` are those of bodies that the framework does not read, and so does not know of.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            told = get_openapi(title=app.title, version=__version__, summary=app.summary, routes=app.routes)
            known = told.setdefault("components", {}).setdefault("schemas", {})
            known["Problem"] = _schema(Problem)
            known["Findings"] = _FINDINGS
            known.update({one.__name__: _schema(one) for one in schemas})
            # Never answered: parameters that are wrong are told as problems like everything else.
            for name in ("HTTPValidationError", "ValidationError"):
                known.pop(name, None)
            app.openapi_schema = told
        return app.openapi_schema

    def docs() -> Response:
        return HTMLResponse(shown(app.openapi()), headers={"content-security-policy": _POLICY})

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_api_route("/docs", docs, include_in_schema=False)


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def shown(document: dict[str, Any]) -> str:
    """Return the document as a page."""
    title = _text(f"{document['info']['title']} {document['info']['version']}")
    operations = [
        _operation(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [
        f"<details><summary><code>{_text(name)}</code></summary>{_json(schema)}</details>"
        for name, schema in sorted(document["components"]["schemas"].items())
    ]
    return "".join(
        (
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta name="color-scheme" content="light dark"><title>{title}</title><style>{_STYLE}</style>',
            f"<h1>{title}</h1><p>{_text(document['info'].get('summary', ''))} ",
            'For programs: <a href="openapi.json">openapi.json</a>.</p>',
            "<pre>curl --fail-with-body --data-binary @scan.nii.gz "
            "HOST/v1/segment?name=scan.nii.gz -o mask.nii.gz</pre>",
            f"<h2>Addresses</h2>{''.join(operations)}<h2>Schemas</h2>{''.join(schemas)}</html>",
        )
    )


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    lock = '<span class="lock">token</span>' if operation.get("security") else ""
    parts = [f"<p>{_text(operation.get('description', operation.get('summary', '')))}</p>"]
    if parameters := operation.get("parameters"):
        rows = ((one["name"], f"{one['in']}: {one.get('description', '')}") for one in parameters)
        parts.append(f"<h4>Parameters</h4>{_table(rows)}")
    if body := operation.get("requestBody"):
        rows = ((kind, body.get("description", "")) for kind in body["content"])
        parts.append(f"<h4>Body</h4>{_table(rows)}")
    parts.append(f"<h4>Answers</h4>{_table(_answers(operation))}")
    head = f"{lock}<code><b>{method.upper()}</b> {_text(path)}</code>"
    return f"<details><summary>{head}</summary>{''.join(parts)}</details>"


def _answers(operation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for status, answer in operation["responses"].items():
        kinds = ", ".join(answer.get("content", {}))
        yield status, f"{answer['description']} {kinds}"


def _table(rows: Any) -> str:
    lines = (f"<tr><th><code>{_text(name)}</code><td>{_text(told)}" for name, told in rows)
    return f"<table>{''.join(lines)}</table>"


def _json(schema: dict[str, Any]) -> str:
    return f"<pre>{_text(json.dumps(schema, indent=2))}</pre>"


def _text(text: str) -> str:
    return html.escape(text)
