"""The page of the administration: ``page.html``, and what a browser may do with it.

It is one file, as it is served: nothing builds it, and nothing of it comes from another host. It
asks for ``/clones`` once a second. A browser runs its script and its style by their hashes. It runs
no other script, connects to no other host, and shows the page in no frame of another.

Source: Content Security Policy Level 3, *hash-source*.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from pathlib import Path
from typing import Final

__all__ = ["HEADERS", "PAGE"]

#: What is served.
PAGE: Final = Path(__file__).with_name("page.html").read_bytes()


def _hash_of(tag: bytes) -> str:
    found = re.search(b"<%b>(.*?)</%b>" % (tag, tag), PAGE, re.DOTALL)
    assert found is not None, "page.html has it"
    return f"'sha256-{b64encode(hashlib.sha256(found[1]).digest()).decode()}'"


#: Headers of each reply.
HEADERS: Final = (
    (
        "Content-Security-Policy",
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src {_hash_of(b'script')}; "
        f"style-src {_hash_of(b'style')}",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)
