"""Signs verdicts with Ed25519.

Guarantees. What is signed is the line `lossguard verdict 1` and the verdict's canonical JSON, so that no other document
of ours can be passed off as a verdict. The first start makes a key; replicas share it through the database. A retired
key still verifies, a revoked one does not.
"""

import base64
import hashlib
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from lossguard.wire.verdict import SIGNED_PREFIX, Verdict
from lossguard_service.store.keys import SigningKey


def new_key(now: float) -> SigningKey:
    """A key made from the system's randomness."""
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    secret = private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    key_id = hashlib.sha256(public).hexdigest()[:16]
    return SigningKey(key_id, base64.b64encode(public).decode(), base64.b64encode(secret).decode(), now)


def sign(verdict: Verdict, key: SigningKey) -> dict[str, Any]:
    """The signature's document.

    Raises:
        ValueError: the key's private half is gone.
    """
    if key.private is None:
        raise ValueError(f"key {key.id} is retired or revoked and signs nothing")
    value = _private(key.private).sign(SIGNED_PREFIX + verdict.canonical())
    return {"algorithm": "Ed25519", "key": key.id, "value": base64.b64encode(value).decode()}


@lru_cache(4)
def _private(text: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(text))
