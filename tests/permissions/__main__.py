"""Print docs/reference/permissions.md; ``make generate`` writes it."""

from __future__ import annotations

import sys

from permissions.page import permissions_markdown

sys.stdout.write(permissions_markdown())
