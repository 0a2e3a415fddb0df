"""``/openapi.json`` and ``/docs``: the operator API described, for programs and for people, without a token."""

from __future__ import annotations

import functools
import html
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from spotledger import paths
from spotledger.http.h1.request import Reply, Request
from spotledger.http.operator.calls import Call, Endpoint, answer, query_of, route
from spotledger.http.operator.openapi import document

#: The page has no script, and nothing on it comes from elsewhere.
PAGE_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_PAGE_HEADERS: Final = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
)


def doc_routes(routes: Callable[[], Sequence[Endpoint]]) -> list[Endpoint]:
    """Return the routes of the description of *routes*, which is made when it is first asked for."""

    @functools.cache
    def described() -> dict[str, Any]:
        return document(routes())

    async def as_json(request: Request) -> Reply:
        query_of(request)
        return answer(described())

    async def as_page(request: Request) -> Reply:
        query_of(request)
        return Reply(200, page(described()).encode(), _PAGE_HEADERS)

    return [
        route(None, paths.OPENAPI, GET=Call(None, as_json, page=True)),
        route(None, paths.DOCS, GET=Call(None, as_page, page=True)),
    ]


def page(described: Mapping[str, Any]) -> str:
    """Return the OpenAPI document *described* as one HTML page."""
    info = described["info"]
    body = [f"<h1>{_text(info['title'])} {_text(info['version'])}</h1>"]
    body += [f"<p>{_prose(part)}</p>" for part in info["description"].strip().split("\n\n")]
    body.append(f'<p>The same as a document for programs: <a href="{paths.OPENAPI}">{paths.OPENAPI}</a></p>')
    sections = list(by_section(described))
    for name, operations in sections:
        links = ", ".join(
            f'<a href="#{_text(found["operationId"])}">{method.upper()} {_text(path)}</a>'
            for path, method, found in operations
        )
        body.append(f"<p class=index><b>{_text(name)}</b>: {links}</p>")
    for name, operations in sections:
        body.append(f"<h2>{_text(name)}</h2>")
        body += [_operation(path, method, found) for path, method, found in operations]
    body.append("<h2>Bodies and answers</h2>")
    body += [_schema(name, schema) for name, schema in described["components"]["schemas"].items()]
    return _PAGE % {"title": _text(info["title"]), "style": _STYLE, "body": "\n".join(body)}


def by_section(described: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str, dict[str, Any]]]]]:
    """Give the operations of the document, as path, method and description, by their sections."""
    operations = [
        (path, method, found) for path, methods in described["paths"].items() for method, found in methods.items()
    ]
    for section in described["tags"]:
        yield section["name"], [operation for operation in operations if operation[2]["tags"] == [section["name"]]]


def type_text(schema: Mapping[str, Any]) -> str:
    """Say in few words what a *schema* takes; a name in brackets is that of another schema."""
    if "$ref" in schema:
        return f"[{schema['$ref'].rpartition('/')[2]}]"
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    for name in ("anyOf", "oneOf"):
        if name in schema:
            return " or ".join(dict.fromkeys(type_text(part) for part in schema[name]))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {type_text(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {type_text(schema['additionalProperties'])} by name"
    if kind == "object" and "properties" in schema:
        return "{" + ", ".join(f'"{name}": {type_text(part)}' for name, part in schema["properties"].items()) + "}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _operation(path: str, method: str, found: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{_text(part['name'])}</code></td><td>{part['in']}{', required' if part.get('required') else ''}"
        f"</td><td>{_linked(type_text(part['schema']))}</td><td>{_prose(part.get('description', ''))}</td></tr>"
        for part in found["parameters"]
    ]
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    body = ""
    if "requestBody" in found:
        media = found["requestBody"]["content"]["application/json"]
        example = json.dumps(media["example"], indent=2, ensure_ascii=False) if "example" in media else ""
        body = f"<p>Body: {_linked(type_text(media['schema']))}</p>" + (
            f"<pre>{_text(example)}</pre>" if example else ""
        )
    answers = [
        f"<tr><td>{status}</td><td>{_linked(type_text(next(iter(said['content'].values()))['schema']))}</td>"
        f"<td>{_prose(said['description'])}</td></tr>"
        for status, said in found["responses"].items()
    ]
    return (
        f'<section id="{_text(found["operationId"])}"><h3><code>{method.upper()} {_text(path)}</code></h3>'
        f"<p><b>{_prose(found['summary'])}.</b> {_prose(found['description'])}</p>{table}{body}"
        f"<details><summary>Answers</summary><table>{''.join(answers)}</table></details></section>"
    )


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{_text(field)}</code></td><td>{'required' if field in required else ''}</td>"
        f"<td>{_linked(type_text(part))}</td><td>{_prose(part.get('description', ''))}</td></tr>"
        for field, part in schema.get("properties", {}).items()
    ]
    return (
        f'<section id="schema-{_text(name)}"><h3>{_text(name)}</h3><p>{_prose(schema.get("description", ""))}</p>'
        f"<table>{''.join(rows)}</table></section>"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _prose(text: str) -> str:
    """Return *text* with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))


def _linked(text: str) -> str:
    return re.sub(r"\[(\w+)\]", r'<a href="#schema-\1">\1</a>', _text(text))


_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%(title)s</title>
<style>%(style)s</style>
</head>
<body>
<main>
%(body)s
</main>
</body>
</html>
"""
_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; }
main { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h2 { margin-top: 3rem; border-bottom: 1px solid #8884; }
h3 { margin: 2rem 0 .25rem; }
table { border-collapse: collapse; width: 100%; }
td { padding: .2rem .8rem .2rem 0; vertical-align: top; border-top: 1px solid #8883; }
pre { background: #8881; padding: .8rem; overflow-x: auto; border-radius: .3rem; }
code { font-family: ui-monospace, monospace; font-size: .92em; overflow-wrap: anywhere; }
summary { cursor: pointer; }
.index { margin: .3rem 0; }
section:target h3 { background: #fd83; }
"""
