"""
Print the balances of one customer, one coin per line.

    export SPOTLEDGER_URL=http://127.0.0.1:8080
    export SPOTLEDGER_ACCESSKEY=…  SPOTLEDGER_SECRETKEY=…
    python examples/get_balance.py
"""

from __future__ import annotations

import os
import sys

from spotledger.client import SpotClient
from spotledger.errors import SpotledgerError


def main() -> int:
    """Return 0 if the balances were printed, 1 if they could not be read, 2 if a variable is missing."""
    try:
        accesskey = os.environ["SPOTLEDGER_ACCESSKEY"]
        secretkey = os.environ["SPOTLEDGER_SECRETKEY"]
    except KeyError as missing:
        print(f"set {missing.args[0]}", file=sys.stderr)
        return 2
    try:
        with SpotClient(accesskey, secretkey) as client:
            balances = client.balances()
    except SpotledgerError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    for coin, balance in balances.items():
        print(f"{coin:8} available {balance.available:>28f}  freeze {balance.freeze:>28f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
