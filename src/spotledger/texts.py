"""The one rule for texts that people read: which characters they may have, and how the others are shown."""

from __future__ import annotations

import json
import re
from typing import Final

#: Control characters (U+0000–001F, 007F–009F), line and paragraph separators (2028, 2029), controls of the direction of
#: writing (061C, 200E, 200F, 202A–202E, 2066–2069), marks that nobody sees (200B, 2060–206F, FEFF, FFF9–FFFB,
#: E0000–E007F), and lone surrogates. Ranges and not properties, so that a text passes under every Unicode version.
_UNFIT: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
#: The rule in words, for messages.
FIT: Final = "characters, no control characters and none that end a line or turn the direction of writing,"


def is_line(text: str) -> bool:
    """Return whether *text* has only characters that a reference, a reason or a label may have."""
    return _UNFIT.search(text) is None


def escaped(text: str, *, keep: str = "") -> str:
    """
    Return *text* with all characters that no line may have written as in JSON, such as ``\\u001b``.

    So it neither moves the cursor of a terminal nor changes what is read beside it. JSON stays the same JSON.

    Args:
        text: Any text.
        keep: Characters that are left as they are, such as the newlines of our own texts.
    """
    return _UNFIT.sub(lambda found: found[0] if found[0] in keep else json.dumps(found[0])[1:-1], text)
