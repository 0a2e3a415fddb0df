"""The page of the operator API in Markdown, made of its OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from spotledger.http.operator.docs import by_section, type_text


def operator_markdown(described: Mapping[str, Any]) -> str:
    """Return the OpenAPI document *described* as one page in Markdown."""
    lines = [
        "# The operator API",
        "",
        "<!-- Made by `spotledger reference operator-api`; do not edit. -->",
        "",
        described["info"]["description"].strip(),
        "",
        "A running service has the same as a page at `/docs` and for programs at `/openapi.json`, both on the operator",
        "listener. What a call can be refused with, and what to do about it: [errors](errors.md). From Python:",
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
            lines += _operation(path, method, found)
    lines += ["", "## Bodies and answers"]
    for name, schema in described["components"]["schemas"].items():
        lines += _schema(name, schema)
    return "\n".join(lines) + "\n"


def _anchor(method: str, path: str) -> str:
    return re.sub(r"[^a-z0-9 _-]", "", f"{method} {path}".lower()).replace(" ", "-")


def _operation(path: str, method: str, found: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"### {method.upper()} {path}", "", f"{found['summary']}. {found['description']}")
    if found["parameters"]:
        yield from ("", "| parameter | in | type | |", "|---|---|---|---|")
    for part in found["parameters"]:
        place = part["in"] + (", required" if part.get("required") else "")
        yield f"| `{part['name']}` | {place} | {_cell(part['schema'])} | {part.get('description', '')} |"
    if "requestBody" in found:
        media = found["requestBody"]["content"]["application/json"]
        yield from ("", f"Body: {_cell(media['schema'])}")
        if "example" in media:
            yield from ("", "```json", json.dumps(media["example"], indent=2, ensure_ascii=False), "```")
    good = [(status, said) for status, said in found["responses"].items() if int(status) < 400]
    for status, said in good:
        kinds = [f"{_cell(content['schema'])} as `{media}`" for media, content in said["content"].items()]
        yield from ("", f"Answer {status}: {', or '.join(kinds)}")
    problems = ", ".join(status for status in found["responses"] if int(status) >= 400)
    yield from ("", f"Problems: {problems}.")


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"### {name}", "", schema.get("description", ""))
    if schema.get("properties"):
        yield from ("", "| field | | type | |", "|---|---|---|---|")
    for field, part in schema.get("properties", {}).items():
        needed = "required" if field in schema.get("required", ()) else ""
        yield f"| `{field}` | {needed} | {_cell(part)} | {part.get('description', '')} |"


def _cell(schema: Mapping[str, Any]) -> str:
    """Return a type as a table's cell, with links to the schemas that it names."""
    text = type_text(schema).replace("|", "\\|")
    return re.sub(r"\[(\w+)\]", lambda found: f"[{found[1]}](#{found[1].lower()})", text)
