"""What people and audit heads are signed with: Ed25519 (RFC 8032) over canonical JSON (RFC 8785)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_MAX_INTEGER = 2**53 - 1


def to_sign(domain: str, subject: str, kind: str, data: Mapping[str, Any]) -> bytes:
    """The bytes a signature covers: all of `data` but the signature, and where it belongs."""
    signed = {name: value for name, value in data.items() if name != "signature"}
    return rfc8785.dumps({"domain": domain, "subject": subject, "type": kind, "data": signed})


def sign(key: Ed25519PrivateKey, message: bytes) -> str:
    """The signature as base64url without padding."""
    return _text(key.sign(message))


def public_text(key: Ed25519PrivateKey) -> str:
    """The public key of `key` as base64url without padding."""
    return _text(key.public_key().public_bytes_raw())


def public_bytes(text: str) -> bytes:
    """The 32 bytes of a public key as `public_text` gives it. Raises ValueError."""
    return _bytes(text)


def is_signed(public_key: str, signature: str, message: bytes) -> bool:
    """Whether `signature` is that of `message` by the holder of `public_key`. Never raises."""
    try:
        Ed25519PublicKey.from_public_bytes(public_bytes(public_key)).verify(_bytes(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def action_digest(*, operation: str, agent: str, subject: str, parameters: Mapping[str, Any]) -> str:
    """What an approval is for: SHA-256 over the canonical JSON of the action as it would be done.

    RFC 8785 knows integers up to 2^53 - 1; a larger one stands as text.
    """
    exact = {
        name: str(value) if isinstance(value, int) and abs(value) > _MAX_INTEGER else value
        for name, value in parameters.items()
    }
    action: dict[str, Any] = {"operation": operation, "agent": agent, "subject": subject, "parameters": exact}
    return hashlib.sha256(rfc8785.dumps(action)).hexdigest()


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
