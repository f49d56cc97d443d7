"""The instance's own authority and the broker's certificate: kept, checked, renewed."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from contracts.errors import SetupFailed
from ops import certificates

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def verified(folder: Path, host: str) -> None:
    """As a client would: by the authority alone, for the name it asked for."""
    authority, broker = (x509.load_pem_x509_certificate((folder / name).read_bytes()) for name in ("ca.pem", "broker.pem"))
    verifier = PolicyBuilder().store(Store([authority])).time(NOW).build_server_verifier(x509.DNSName(host))
    verifier.verify(broker, [])


def test_the_brokers_certificate_is_good_for_its_hosts_and_no_other_when_made(tmp_path: Path) -> None:
    certificates.made(tmp_path, ("localhost", "kafka"), now=NOW)
    verified(tmp_path, "localhost")
    verified(tmp_path, "kafka")
    with pytest.raises(VerificationError):
        verified(tmp_path, "elsewhere")


def test_everything_stays_as_it_is_when_made_a_second_time(tmp_path: Path) -> None:
    certificates.made(tmp_path, now=NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    certificates.made(tmp_path, now=NOW + timedelta(days=1))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert set(before) == {"ca.pem", "ca.key.pem", "broker.pem"}


def test_what_was_interrupted_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes, count = certificates.write_secret, iter(range(9))

    def dies(path: Path, content: bytes) -> None:
        if next(count) == at:
            raise KeyboardInterrupt
        writes(path, content)

    for at in range(3):
        folder, count = tmp_path / str(at), iter(range(9))
        monkeypatch.setattr(certificates, "write_secret", dies)
        with pytest.raises(KeyboardInterrupt):
            certificates.made(folder, ("localhost",), now=NOW)
        monkeypatch.setattr(certificates, "write_secret", writes)
        certificates.made(folder, ("localhost",), now=NOW)
        verified(folder, "localhost")


def test_only_the_owner_reads_keys_when_made(tmp_path: Path) -> None:
    certificates.made(tmp_path / "secrets", now=NOW)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "secrets").iterdir()} == {0o600}
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700


def test_a_certificate_that_has_ended_is_refused_with_what_to_do_when_checked(tmp_path: Path) -> None:
    certificates.made(tmp_path, now=NOW)
    assert certificates.checked(tmp_path, now=NOW) is None
    with pytest.raises(SetupFailed, match=r"broker\.pem: valid from .* until 2031-02-02.* access renew"):
        certificates.checked(tmp_path, now=NOW + certificates.BROKER_LASTS)
    with pytest.raises(SetupFailed, match="valid from"):
        certificates.checked(tmp_path, now=NOW - timedelta(days=1))


def test_a_certificate_that_ends_soon_is_told_when_checked(tmp_path: Path) -> None:
    certificates.made(tmp_path, now=NOW)
    soon = NOW + certificates.BROKER_LASTS - timedelta(days=29)
    assert "2031-02-02" in str(certificates.checked(tmp_path, now=soon))
    certificates.renew(tmp_path, now=soon)
    assert certificates.checked(tmp_path, now=soon) is None


def test_another_host_is_refused_until_renewed_for_it_and_kept_from_then_on(tmp_path: Path) -> None:
    certificates.made(tmp_path, now=NOW)
    with pytest.raises(SetupFailed, match="renew --host kafka"):
        certificates.checked(tmp_path, (*certificates.HOSTS, "kafka"), now=NOW)
    certificates.renew(tmp_path, ("kafka",), now=NOW)
    certificates.renew(tmp_path, now=NOW)
    assert certificates.checked(tmp_path, (*certificates.HOSTS, "kafka"), now=NOW) is None
    verified(tmp_path, "kafka")


def test_the_broker_outlives_no_authority_when_renewed(tmp_path: Path) -> None:
    certificates.made(tmp_path, now=NOW)
    late = NOW + certificates.CA_LASTS - timedelta(days=10)
    assert certificates.renew(tmp_path, now=late) <= NOW + certificates.CA_LASTS
    with pytest.raises(SetupFailed, match=r"ca\.pem ended on"):
        certificates.renew(tmp_path, now=NOW + certificates.CA_LASTS)


def test_a_lost_authority_is_told_when_a_certificate_is_to_be_renewed(tmp_path: Path) -> None:
    certificates.made(tmp_path, now=NOW)
    (tmp_path / "ca.key.pem").unlink()
    with pytest.raises(SetupFailed, match=r"ca\.key\.pem.*bring it back"):
        certificates.renew(tmp_path, now=NOW)
