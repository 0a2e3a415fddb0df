"""The OpenAPI document, its page, and a fuzzer that reads it and calls the real service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import jsonschema_rs
import msgspec
import pytest

from spotledger import errors
from spotledger.http import wire
from spotledger.http.operator.openapi import EXAMPLES, codes_of_status
from support_operator import operator_api
from support_service import Service, environment, start

#: Cases for each call and way of making them; all of it takes well under a minute.
FUZZ_EXAMPLES = 8
FUZZ_SECONDS = 85
SETTINGS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "503"]
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service with a customer who has something."""
    running = start(tmp_path_factory.mktemp("openapi") / "data")
    running.client()
    running.list_coins(usdt=8, btc=8)
    running.trader("alice", {"usdt": ("100", "20")})
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def described(service: Service) -> dict[str, Any]:
    """The document as the service gives it, without a token."""
    answer = httpx2.get(f"{service.operator_url}/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def operations(described: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, said) for path, calls in described["paths"].items() for method, said in calls.items()]


def test_document_has_every_route_and_method(described: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the API answers is in the document, but the document and its page themselves."""
    with operator_api(tmp_path / "data") as api:
        there = {
            (route.path, method.lower())
            for route in api.app.routes
            for method, call in route.calls.items()
            if method != "HEAD" and not call.page
        }
    assert {(path, method) for path, method, _ in operations(described)} == there


def test_document_describes_each_call_wholly(described: dict[str, Any]) -> None:
    """Each call has a summary, its scope or that it needs none, its parameters, body, answers and problems."""
    names = [said["operationId"] for _, _, said in operations(described)]
    assert len(set(names)) == len(names)
    for path, method, said in operations(described):
        place = f"{method} {path}"
        assert said["summary"], place
        assert re.search(r"Scope: `[a-z:]+`|Any token will do|Needs no token", said["description"]), place
        assert {part["name"] for part in said["parameters"] if part["in"] == "path"} == set(
            re.findall(r"{(\w+)}", path)
        ), place
        headers = {part["name"] for part in said["parameters"] if part["in"] == "header" and part.get("required")}
        no_key = ("/v1/batches", "/v1/backups", "/v1/audits", "/v1/clock/trust", "/v1/master-key/rotate")
        assert headers == ({"Idempotency-Key"} if method == "post" and path not in no_key else set()), place
        for status, answer in said["responses"].items():
            schema = next(iter(answer["content"].values()))["schema"]
            assert schema or path == "/metrics", (place, status)
            if int(status) >= 400:
                assert schema == {"$ref": "#/components/schemas/Problem"}


def test_document_names_every_code_that_a_call_can_be_refused_with() -> None:
    """Each leaf of the error tree that this API can say is among the codes of its status."""
    for kind in wire.TABLE:
        if issubclass(kind, errors.Refused) and not issubclass(kind, errors.MethodNotAllowed):
            assert kind.code in codes_of_status(wire.row_of(kind).status)
    assert "signature_refused" not in codes_of_status(401)


def test_document_is_valid_and_its_schemas_too(described: dict[str, Any]) -> None:
    """Every schema is one by JSON Schema 2020-12, and every reference leads somewhere."""
    schemas = described["components"]["schemas"]
    for schema in schemas.values():
        jsonschema_rs.meta.validate(schema)
    for name in re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(described)):
        assert name in schemas


def test_examples_fit_their_schemas_and_can_be_read(described: dict[str, Any]) -> None:
    """Each body has an example; it fits the schema and is read by the struct."""
    bodies = 0
    for _, _, said in operations(described):
        if "requestBody" not in said:
            continue
        media = said["requestBody"]["content"]["application/json"]
        bodies += 1
        if "example" in media:
            whole = {**media["schema"], "components": described["components"]}
            jsonschema_rs.validator_for(whole).validate(media["example"])
    assert bodies >= len(EXAMPLES)
    for kind, example in EXAMPLES.items():
        msgspec.json.decode(json.dumps(example), type=kind)


class _Page(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.add(str(value))
            elif name in ("href", "src"):
                self.links.add(str(value))


def test_page_is_whole_without_the_internet(service: Service, described: dict[str, Any]) -> None:
    """The page has every call, no script, nothing from elsewhere, and no link that leads nowhere."""
    answer = httpx2.get(f"{service.operator_url}/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = _Page()
    page.feed(answer.text)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert page.links - {"/openapi.json"} == {link for link in page.links if link.startswith("#")}
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert {said["operationId"] for _, _, said in operations(described)} <= page.ids


@pytest.mark.slow
@pytest.mark.timeout(FUZZ_SECONDS + 30)
def test_fuzzer_that_reads_the_document_finds_nothing(
    service: Service, described: dict[str, Any], tmp_path: Path
) -> None:
    """What the document allows is done or refused as it says, what it does not allow is refused, nothing breaks."""
    for _, _, said in operations(described):
        # A read for an entry that does not come waits for seconds; what min_seq does is tested elsewhere.
        said["parameters"] = [part for part in said["parameters"] if part["name"] != "min_seq"]
    document, settings = tmp_path / "openapi.json", tmp_path / "schemathesis.toml"
    document.write_text(json.dumps(described))
    settings.write_text(SETTINGS)
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(settings)),
        *("run", str(document), "--url", service.operator_url, "--header", f"Authorization: Bearer {service.token}"),
        *("--mode", "all", "--max-examples", str(FUZZ_EXAMPLES), "--phases", "examples,coverage,fuzzing"),
        *("--request-timeout", "10", "--continue-on-failure", "--no-color", "--generation-database", "none"),
    ]
    run = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=FUZZ_SECONDS, check=False
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
