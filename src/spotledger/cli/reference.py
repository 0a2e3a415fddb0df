"""The command that prints the reference pages that are generated from the program."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from spotledger.cli.output import Output
from spotledger.http.error_advice import errors_markdown
from spotledger.http.operator.app import OperatorApp
from spotledger.http.operator.docs import operator_markdown
from spotledger.http.operator.openapi import document
from spotledger.ops.runtime import claim_folder, open_runtime
from spotledger.ops.settings import Settings


@click.command(hidden=True)
@click.argument("page", type=click.Choice(["operator-api", "errors", "openapi"]))
def reference(page: str) -> None:
    """Print the page of the operator API or of the errors as Markdown, or the OpenAPI document."""
    if page == "errors":
        Output.text(errors_markdown())
    elif page == "operator-api":
        Output.text(operator_markdown(_described()))
    else:
        Output.json(_described(), indent=2)


def _described() -> dict[str, Any]:
    """Return the OpenAPI document, from an API over a temporary ledger."""
    with (
        tempfile.TemporaryDirectory(prefix="spotledger-") as folder,
        claim_folder(Path(folder)) as lock,
        open_runtime(Settings(data=Path(folder)), {}, lock) as runtime,
    ):
        return document(OperatorApp(runtime).routes)
