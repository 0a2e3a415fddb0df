"""The OpenAPI document as pages: ``/docs`` in HTML, beside ``/openapi.json``, and the reference page in Markdown."""

from __future__ import annotations

import asyncio
import functools
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from spotledger import paths
from spotledger.http.h1.request import Header, Reply, Request
from spotledger.http.operator.calls import JSON_HEADER, Call, Endpoint, answer, query_of, route
from spotledger.http.operator.openapi import document

#: The page has no script and loads nothing from elsewhere.
PAGE_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_PAGE_HEADERS: Final = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
)


def doc_routes(routes: Callable[[], Sequence[Endpoint]]) -> list[Endpoint]:
    """Return the routes of the document of *routes* and of its page; each is made once, beside the event loop."""

    @functools.cache
    def described() -> dict[str, Any]:
        return document(routes())

    as_json = _Kept(lambda: answer(described()).body, (JSON_HEADER,))
    as_page = _Kept(lambda: html_page(described()).encode(), _PAGE_HEADERS)
    return [
        route(None, paths.OPENAPI, GET=Call(None, as_json.reply, page=True)),
        route(None, paths.DOCS, GET=Call(None, as_page.reply, page=True)),
    ]


class _Kept:
    """A static page: *render* is called at the first request, in a thread, and what it returns is kept."""

    def __init__(self, render: Callable[[], bytes], headers: tuple[Header, ...]) -> None:
        self._render = render
        self._headers = headers
        self._lock = asyncio.Lock()
        self._body: bytes | None = None

    async def reply(self, request: Request) -> Reply:
        """Return the page."""
        query_of(request)
        async with self._lock:
            if self._body is None:
                self._body = await asyncio.to_thread(self._render)
        return Reply(200, self._body, self._headers)


def by_section(described: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str, dict[str, Any]]]]]:
    """Yield each section of the document with its operations, as path, method and description."""
    operations = [
        (path, method, found) for path, methods in described["paths"].items() for method, found in methods.items()
    ]
    for section in described["tags"]:
        yield section["name"], [operation for operation in operations if operation[2]["tags"] == [section["name"]]]


def type_text(schema: Mapping[str, Any]) -> str:
    """Return a short text for the type of *schema*; a name in brackets is that of another schema."""
    if "$ref" in schema:
        return f"[{schema['$ref'].rpartition('/')[2]}]"
    values = [schema["const"]] if "const" in schema else schema.get("enum", ())
    parts = schema.get("anyOf") or schema.get("oneOf") or ()
    if values or parts:
        return " or ".join(dict.fromkeys([*map(json.dumps, values), *map(type_text, parts)]))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {type_text(schema['items'])}"
    if kind == "object":
        return _object_text(schema)
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _object_text(schema: Mapping[str, Any]) -> str:
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {type_text(schema['additionalProperties'])} by name"
    fields = ", ".join(f'"{name}": {type_text(part)}' for name, part in schema.get("properties", {}).items())
    return f"{{{fields}}}" if fields else "object"


def html_page(described: Mapping[str, Any]) -> str:
    """Return the OpenAPI document *described* as one HTML page."""
    info = described["info"]
    body = [f"<h1>{_text(info['title'])} {_text(info['version'])}</h1>"]
    body += [f"<p>{_prose(part)}</p>" for part in info["description"].strip().split("\n\n")]
    body.append(f'<p>The OpenAPI document: <a href="{paths.OPENAPI}">{paths.OPENAPI}</a></p>')
    sections = list(by_section(described))
    for name, operations in sections:
        links = ", ".join(
            f'<a href="#{_text(found["operationId"])}">{method.upper()} {_text(path)}</a>'
            for path, method, found in operations
        )
        body.append(f"<p class=index><b>{_text(name)}</b>: {links}</p>")
    for name, operations in sections:
        body.append(f"<h2>{_text(name)}</h2>")
        body += [_html_operation(path, method, found) for path, method, found in operations]
    body.append("<h2>Bodies and answers</h2>")
    body += [_html_schema(name, schema) for name, schema in described["components"]["schemas"].items()]
    return _PAGE % {"title": _text(info["title"]), "style": _STYLE, "body": "\n".join(body)}


def _html_operation(path: str, method: str, found: Mapping[str, Any]) -> str:
    parameters = _table(
        (
            f"<code>{_text(part['name'])}</code>",
            part["in"] + (", required" if part.get("required") else ""),
            _linked(type_text(part["schema"])),
            _prose(part.get("description", "")),
        )
        for part in found["parameters"]
    )
    body = ""
    if "requestBody" in found:
        media = found["requestBody"]["content"]["application/json"]
        body = f"<p>Body: {_linked(type_text(media['schema']))}</p>"
        if "example" in media:
            body += f"<pre>{_text(json.dumps(media['example'], indent=2, ensure_ascii=False))}</pre>"
    answers = _table(
        (status, _linked(type_text(next(iter(said["content"].values()))["schema"])), _prose(said["description"]))
        for status, said in found["responses"].items()
    )
    return (
        f'<section id="{_text(found["operationId"])}"><h3><code>{method.upper()} {_text(path)}</code></h3>'
        f"<p><b>{_prose(found['summary'])}.</b> {_prose(found['description'])}</p>{parameters}{body}"
        f"<details><summary>Answers</summary>{answers}</details></section>"
    )


def _html_schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    fields = _table(
        (
            f"<code>{_text(field)}</code>",
            "required" if field in required else "",
            _linked(type_text(part)),
            _prose(part.get("description", "")),
        )
        for field, part in schema.get("properties", {}).items()
    )
    description = _prose(schema.get("description", ""))
    return f'<section id="schema-{_text(name)}"><h3>{_text(name)}</h3><p>{description}</p>{fields}</section>'


def _table(rows: Iterable[Sequence[str]]) -> str:
    """Return a table of *rows*, whose cells are HTML."""
    lines = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def _text(value: object) -> str:
    return html.escape(str(value))


def _prose(text: str) -> str:
    """Return *text* as HTML, with text in backticks as code."""
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


def operator_markdown(described: Mapping[str, Any]) -> str:
    """Return the OpenAPI document *described* as one page in Markdown."""
    lines = [
        "# The operator API",
        "",
        "<!-- Made by `spotledger reference operator-api`; do not edit. -->",
        "",
        described["info"]["description"].strip(),
        "",
        "A running service has this page at `/docs` and the OpenAPI document at `/openapi.json`, both on the operator",
        "listener. For what to do about each error see [errors](errors.md), and for Python see",
        "[the typed clients](operator-client.md).",
        "",
        "| call | what it does |",
        "|---|---|",
    ]
    sections = list(by_section(described))
    for _, operations in sections:
        lines += [
            f"| [`{method.upper()} {path}`](#{_anchor(method, path)}) | {found['summary']} |"
            for path, method, found in operations
        ]
    for name, operations in sections:
        lines += ["", f"## {name}"]
        for path, method, found in operations:
            lines += _markdown_operation(path, method, found)
    lines += ["", "## Bodies and answers"]
    for name, schema in described["components"]["schemas"].items():
        lines += _markdown_schema(name, schema)
    return "\n".join(lines) + "\n"


def _anchor(method: str, path: str) -> str:
    return re.sub(r"[^a-z0-9 _-]", "", f"{method} {path}".lower()).replace(" ", "-")


def _markdown_operation(path: str, method: str, found: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"### {method.upper()} {path}", "", f"{found['summary']}. {found['description']}")
    yield from _markdown_parameters(found["parameters"])
    if "requestBody" in found:
        media = found["requestBody"]["content"]["application/json"]
        yield from ("", f"Body: {_cell(media['schema'])}")
        if "example" in media:
            yield from ("", "```json", json.dumps(media["example"], indent=2, ensure_ascii=False), "```")
    problems = [status for status in found["responses"] if int(status) >= 400]
    for status in sorted(found["responses"].keys() - problems):
        contents = found["responses"][status]["content"]
        kinds = [f"{_cell(content['schema'])} as `{media}`" for media, content in contents.items()]
        yield from ("", f"Answer {status}: {', or '.join(kinds)}")
    yield from ("", f"Problems: {', '.join(problems)}.")


def _markdown_parameters(parameters: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if parameters:
        yield from ("", "| parameter | in | type | |", "|---|---|---|---|")
    for part in parameters:
        place = part["in"] + (", required" if part.get("required") else "")
        yield f"| `{part['name']}` | {place} | {_cell(part['schema'])} | {part.get('description', '')} |"


def _markdown_schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"### {name}", "", schema.get("description", ""))
    if schema.get("properties"):
        yield from ("", "| field | | type | |", "|---|---|---|---|")
    for field, part in schema.get("properties", {}).items():
        needed = "required" if field in schema.get("required", ()) else ""
        yield f"| `{field}` | {needed} | {_cell(part)} | {part.get('description', '')} |"


def _cell(schema: Mapping[str, Any]) -> str:
    """Return a type as a table cell, with links to the schemas that it names."""
    text = type_text(schema).replace("|", "\\|")
    return re.sub(r"\[(\w+)\]", lambda found: f"[{found[1]}](#{found[1].lower()})", text)
