"""
Rotate the master key of a data folder, and die by SIGKILL at the line of our code that the arguments number.

``rotate_and_die.py LINE FOLDER [DATABASE NEXT_KEY_FILE]``: lines count as they are run, of the rotation and of whatever
it calls in the package. Prints how many were run if it gets to the end.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import spotledger
from spotledger.ops.master_keys import MasterKeyRotation
from spotledger.ops.runtime import claim_folder, open_runtime
from spotledger.ops.settings import load_settings

PACKAGE = str(Path(spotledger.__file__).parent)
#: Sealing anew takes one row like the other; their lines are not counted apart.
PER_ROW = {"__call__", "seal", "open", "_change", "add", "remove", "digest_of", "reseal"}


def main(at_line: int, folder: str, database: str | None = None, next_file: str | None = None) -> None:
    """Rotate, and die."""
    run = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal run
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_name in PER_ROW:
            return None
        if event == "line":
            run += 1
            if run == at_line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    flags = {"data": folder, "database": database, "next_master_key_file": next_file}
    settings = load_settings(flags, {}).settings
    with claim_folder(Path(folder)) as lock, open_runtime(settings, {}, lock) as runtime:
        rotation: MasterKeyRotation = runtime.master_key
        sys.settrace(trace)
        rotation.rotate()
        sys.settrace(None)
        sys.stdout.write(f"{run}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
