"""The instance's own certificate authority, and the broker's certificate.

`ca.pem`, `ca.key.pem` and `broker.pem` (key, then certificate) in the folder of secrets; private keys are
readable by their owner only, and unencrypted: whoever can read them is who they say.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from contracts.errors import SetupFailed

# The broker's name in its certificate, and so its principal: the only one the broker lets do everything.
BROKER = "broker"
HOSTS = ("localhost", "127.0.0.1")
CA_LASTS = timedelta(days=3650)
BROKER_LASTS = timedelta(days=397)
TOLD_BEFORE = timedelta(days=30)
_SKEW = timedelta(minutes=5)  # clocks of clients may be behind


def write_secret(path: Path, content: bytes) -> None:
    """`content` whole under `path`, readable by its owner only at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    staged = path.with_name(f".{path.name}.{os.getpid()}.new")
    staged.unlink(missing_ok=True)
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    staged.replace(path)


def made(folder: Path, hosts: Sequence[str] = HOSTS, *, now: datetime) -> None:
    """Make what is missing: authority, and a certificate of the broker for `hosts`. What is there stays."""
    key_file, ca_file = folder / "ca.key.pem", folder / "ca.pem"
    if not (folder / "broker.pem").exists() and not key_file.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Flyball instance CA")
        ca = (
            _certificate(name, name, key.public_key(), key.public_key(), now, CA_LASTS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        write_secret(ca_file, ca.public_bytes(Encoding.PEM))  # first: without the key, all of this is done again
        write_secret(key_file, _pem(key))
    if not (folder / "broker.pem").exists():
        renew(folder, hosts, now=now)


def renew(folder: Path, hosts: Sequence[str] = HOSTS, *, now: datetime) -> datetime:
    """A new key and certificate of the broker from the same authority; until when. Clients notice nothing.

    It is for `hosts` and for all that the one before was for.
    """
    try:
        ca_key = load_pem_private_key((folder / "ca.key.pem").read_bytes(), None)
        ca = _read(folder / "ca.pem")
    except OSError as error:
        raise SetupFailed(
            f"{error.filename}: {error.strerror}: the authority's key signs the broker's certificate; bring it back"
        ) from None
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise SetupFailed(f"{folder / 'ca.key.pem'}: expected a key on an elliptic curve")
    if now >= ca.not_valid_after_utc:
        raise SetupFailed(
            f"{folder / 'ca.pem'} ended on {ca.not_valid_after_utc:%Y-%m-%d}: remove it, ca.key.pem and"
            " broker.pem; the next start makes new ones, and every client elsewhere needs the new ca.pem"
        )
    names = [_alternative(host) for host in hosts]
    if (folder / "broker.pem").exists():
        names += [name for name in _hosts(folder) if name not in names]
    key = ec.generate_private_key(ec.SECP256R1())
    lasts = min(BROKER_LASTS, ca.not_valid_after_utc - now)
    certificate = (
        _certificate(_name(BROKER), ca.subject, key.public_key(), ca_key.public_key(), now, lasts)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_secret(folder / "broker.pem", _pem(key) + certificate.public_bytes(Encoding.PEM))
    return certificate.not_valid_after_utc


def checked(folder: Path, hosts: Sequence[str] = HOSTS, *, now: datetime) -> str | None:
    """What to tell about certificates that end soon. Raises SetupFailed for one that may not be used."""
    warning = None
    for name in ("ca.pem", "broker.pem"):
        path = folder / name
        certificate = _read(path)
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begins <= now < ends:
            how = "'./flyball access renew' makes a new one" if name == "broker.pem" else "see docs/security.md"
            raise SetupFailed(
                f"{path}: valid from {begins:%Y-%m-%dT%H:%MZ} until {ends:%Y-%m-%dT%H:%MZ}, it is {now:%Y-%m-%dT%H:%MZ}; {how}"
            )
        if ends - now < TOLD_BEFORE:
            warning = f"{path} ends on {ends:%Y-%m-%d}: './flyball access renew', then start again"
    if missing := [host for host in hosts if _alternative(host) not in _hosts(folder)]:
        raise SetupFailed(
            f"{folder / 'broker.pem'} is not for {', '.join(missing)}: './flyball access renew"
            + "".join(f" --host {host}" for host in missing)
            + "'"
        )
    return warning


def ends_at(folder: Path) -> datetime:
    """Until when the broker's certificate is good."""
    return _read(folder / "broker.pem").not_valid_after_utc


def _hosts(folder: Path) -> list[x509.GeneralName]:
    names = _read(folder / "broker.pem").extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return list(names.value)


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise SetupFailed(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise SetupFailed(f"{path}: expected a certificate in PEM: {error}") from None


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, issuer_key: ec.EllipticCurvePublicKey,
    now: datetime, lasts: timedelta,
) -> x509.CertificateBuilder:  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def now() -> datetime:
    return datetime.now(UTC)
