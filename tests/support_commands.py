"""Every command of the command line, with something for each parameter that it must have."""

from __future__ import annotations

from typing import Final

import click

from support_unreadable import commands

#: Values of the parameters that a command must have.
VALUES: Final = {
    "scale": "8", "amount": "1", "key": "k", "permissions": "read", "scopes": "admin", "seq": "1", "reason": "r",
    "customer": "ann", "coin": "btc", "what": "ann", "hold": "1", "page": "errors",
}  # fmt: skip
COMMANDS: Final = {" ".join(path): command for path, command in commands()}


def call_of(name: str, **given: str) -> list[str]:
    """Return the arguments of the command *name*, with *given* for its parameters, and something for the others."""
    command, options, arguments = COMMANDS[name], [], []
    for param in command.params:
        # Another process may listen at the default addresses.
        value = given.get(param.name or "", "127.0.0.1:0" if param.name in ("listen", "operator_listen") else None)
        if isinstance(param, click.Argument):
            if param.required or value is not None:
                arguments.append(value or VALUES.get(param.name or "", "x"))
        elif value is not None or param.required:
            options += [max(param.opts, key=len), value or VALUES.get(param.name or "", "x")]
    if name == "find":
        options += ["--reference", "r"]
    more = ["btc", "1"] if name == "withdraw" else []
    return [*name.split(), *options, "--", *arguments, *more]
