"""Checks the signatures of verdicts, offline.

Guarantees. True only for an Ed25519 signature over exactly this verdict by one of the public keys that the caller
trusts; which key signed is looked up there, never taken from the document. A key that is not in the list counts for
nothing, so removing a revoked key from it is all that a revocation needs.

A key file holds one key per line, `ed25519:` and the base64 of its 32 bytes; `#` begins a comment. `lossguard gate keys
--out FILE` writes one.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from lossguard.gate.errors import GateError, NotVerified
from lossguard.wire.verdict import SIGNED_PREFIX, Verdict

SCHEME: Final = "ed25519:"


class NotAKey(GateError):
    """The text or file holds no public key."""


class CannotVerify(GateError):
    """The package that checks signatures is not installed; nothing is known about the signature."""


def read_keys(sources: Sequence[str | Path]) -> dict[str, bytes]:
    """The public keys in files, or written out, by id.

    Raises:
        NotAKey: a source holds none, or something else.
    """
    keys: dict[str, bytes] = {}
    for source in sources:
        text = str(source)
        if not text.startswith(SCHEME):
            try:
                text = Path(source).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                why = (error.strerror if isinstance(error, OSError) else None) or "it is no text"
                raise NotAKey(
                    f"{source} is neither a key (ed25519:...) nor a file of keys ({why}): write one with "
                    "`lossguard gate keys --out FILE`"
                ) from None
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        found = [_key(line, source) for line in lines if line]
        if not found:
            raise NotAKey(f"{source} holds no key: write one with `lossguard gate keys --out FILE`")
        keys |= {sha256(key).hexdigest()[:16]: key for key in found}
    return keys


def check_signature(verdict: Verdict, document: Mapping[str, Any], keys: Mapping[str, bytes]) -> str:
    """The id of the key that signed the verdict.

    Args:
        verdict: what must be signed.
        document: the JSON it came in, with the signature.
        keys: the public keys that are trusted, by id.

    Raises:
        NotVerified: there is no signature, or it is not by a trusted key over this verdict.
        CannotVerify: `cryptography` is not installed.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise CannotVerify('signatures cannot be checked here: pip install "lossguard[gate]"') from None

    signature = document.get("signature")
    if not isinstance(signature, Mapping):
        raise NotVerified(f"verdict {verdict.id} is not signed: do not serve this model")
    if signature.get("algorithm") != "Ed25519":
        raise NotVerified(f"verdict {verdict.id} is signed with {signature.get('algorithm')!r}, only Ed25519 counts")
    key_id = signature.get("key")
    key = keys.get(key_id) if isinstance(key_id, str) else None
    if key is None:
        raise NotVerified(
            f"verdict {verdict.id} is signed by key {key_id!r}, which is not trusted here (trusted: "
            f"{', '.join(sorted(keys)) or 'none'}): if the service's key was rotated, fetch its keys again"
        )
    try:
        value = base64.b64decode(str(signature.get("value")), validate=True)
        Ed25519PublicKey.from_public_bytes(key).verify(value, SIGNED_PREFIX + verdict.canonical())
    except (InvalidSignature, binascii.Error, ValueError):
        raise NotVerified(
            f"the signature of verdict {verdict.id} is not by key {key_id} over this verdict: it was changed; do not "
            "serve this model"
        ) from None
    return str(key_id)


def _key(line: str, source: str | Path) -> bytes:
    try:
        raw = base64.b64decode(line.removeprefix(SCHEME), validate=True)
    except binascii.Error:
        raw = b""
    if not line.startswith(SCHEME) or len(raw) != 32:
        raise NotAKey(
            f"{source} holds {line[:60]!r}, which is no key: a key is ed25519: and 44 characters of base64, as "
            "`lossguard gate keys` prints them"
        )
    return raw
