"""The OpenAPI as a page to read: no script, nothing from the internet."""

from collections.abc import Iterator
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem; border-bottom: 1px solid; text-transform: capitalize } h3 { margin: 2rem 0 0; font-size: 1rem }
code { font-size: .95em } td, th { text-align: left; vertical-align: top; padding: .1rem 1rem .1rem 0 }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee } a { color: #9cf } }
"""


def page(openapi: dict[str, Any]) -> str:
    """The page as HTML."""
    info = openapi["info"]
    body = "".join(_sections(openapi))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])}: HTTP API</title><style>{STYLE}</style>"
        f"<h1>{escape(info['title'])}: HTTP API</h1><p>{escape(info['description'])}</p>"
        f'<p>For programs: <a href="/openapi.json">openapi.json</a>.</p>{body}</html>'
    )


def _sections(openapi: dict[str, Any]) -> Iterator[str]:
    operations = [
        (path, method, operation) for path, item in openapi["paths"].items() for method, operation in item.items()
    ]
    for tag in dict.fromkeys(operation["tags"][0] for _, _, operation in operations):
        yield f"<h2>{escape(tag)}</h2>"
        for path, method, operation in operations:
            if operation["tags"][0] == tag:
                yield f'<h3 id="{operation["operationId"]}"><code>{method.upper()} {escape(path)}</code></h3>'
                yield f"<p>{escape(operation['description'])}</p>"
                rows = [*_parameters(operation), *_body(openapi, operation)]
                if rows:
                    yield f"<table><tr><th>Parameter<th>Values<th>Default<th>Meaning{''.join(rows)}</table>"
                yield f"<p>Answers: {escape(_answers(openapi, operation))}</p>"


def _parameters(operation: dict[str, Any]) -> Iterator[str]:
    for parameter in operation.get("parameters", []):
        yield _row(
            f"{parameter['name']} ({parameter['in']})",
            parameter["schema"],
            parameter["required"],
            parameter.get("description", ""),
        )


def _body(openapi: dict[str, Any], operation: dict[str, Any]) -> Iterator[str]:
    if content := operation.get("requestBody", {}).get("content"):
        schema = _resolved(openapi, content["application/json"]["schema"])
        for name, field in schema["properties"].items():
            yield _row(name, field, name in schema.get("required", []), field.get("description", ""))


def _row(name: str, schema: dict[str, Any], required: bool, description: str) -> str:
    default = "required" if required else str(schema.get("default", "none")).lower()
    cells = (f"<code>{escape(name)}</code>", escape(_values(schema)), escape(default), escape(description))
    return f"<tr><td>{'<td>'.join(cells)}"


def _values(schema: dict[str, Any]) -> str:
    """The values that a schema allows, in words."""
    if choices := schema.get("anyOf"):
        return " or ".join(_values(choice) for choice in choices if choice.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum") or [schema["const"]]))
    bounds = f", {schema['minimum']} to {schema['maximum']}" if {"minimum", "maximum"} <= schema.keys() else ""
    return f"{schema.get('type', '')}{bounds}"


def _answers(openapi: dict[str, Any], operation: dict[str, Any]) -> str:
    def fields(response: dict[str, Any]) -> str:
        schema = _resolved(openapi, response.get("content", {}).get("application/json", {}).get("schema", {}))
        return f" ({', '.join(schema['properties'])})" if "properties" in schema else ""

    return ", ".join(
        f"{status}{fields(response) if int(status) < 300 else ''}"
        for status, response in operation["responses"].items()
    )


def _resolved(openapi: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return openapi["components"]["schemas"][name] if name else schema
