"""The sealer: signs, at intervals, what every subject's chain of decisions ends with.

Reads `<domain>.decisions` (read_committed) and writes `<domain>.audit-heads`, only when there is something
new, every `seal_every_s` seconds of wall time and once more on SIGTERM. A head holds at most
`MAX_RECORDS` records or about `MAX_SUBJECTS` subjects, so a sealer that was away writes several.

A restart, or a broker that does not answer: it reads its own heads and goes on behind the last one that its key signed, so nothing is
sealed twice and no old record is believed again. It keeps no other state. In memory: two hashes, a
number and a name a subject. It raises SetupFailed when the topic has heads and none is of its key: with
another key nobody could tell its heads from forged ones.

Its key is `.flyball/keys/<domain>/audit-heads.pem`, made at first bring-up. Run as
`python -m ops.sealer DOMAIN`; the supervisor does.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kafka import KafkaProducer
from kafka.errors import KafkaError

from contracts.access import principal
from contracts.errors import BrokerUnavailable, SetupFailed
from contracts.topics import topic
from jobs.settings import load_settings
from ops import kafka
from ops.home import Home
from ops.people import AUDIT_KEY, key_file, made_key
from udfs.policy.audit import Line, Read, read
from udfs.policy.heads import Sealed, resume, seal
from udfs.policy.signing import public_text

MAX_SUBJECTS = 2_000  # a head of so many with the longest names still fits a record
MAX_RECORDS = 20_000
_NAP_S = 0.2


class Sealer:
    """Seals one domain. `sealed` is what the key's heads covered so far."""

    def __init__(
        self, domain: str, key: Ed25519PrivateKey, sealed: Sealed, reader: kafka.BulkReader, writer: KafkaProducer
    ) -> None:
        self._domain, self._key, self._sealed = domain, key, sealed
        self._reader, self._writer = reader, writer
        self._topic = topic("audit-heads").of(domain)
        self._unsealed: list[Read] = []
        self._subjects: set[str] = set()
        self._decisions = topic("decisions").of(domain)
        # Partition -> the offset to read next.
        self._next = {number: sealed.ends.get(number, 0) for number in reader.partitions(self._decisions)}

    @classmethod
    def open(cls, bootstrap_servers: str, domain: str, key: Ed25519PrivateKey) -> Sealer:
        """One that goes on behind the last head of `key`. Raises SetupFailed when it cannot."""
        sealed = sealed_so_far(bootstrap_servers, domain, key)
        who = principal(domain, "sealer")
        reader = kafka.BulkReader(bootstrap_servers, principal=who)
        return cls(domain, key, sealed, reader, kafka.producer(bootstrap_servers, principal=who, linger_ms=0))

    def look(self, now_ms: Callable[[], int]) -> int:
        """Seal everything committed by now; how many heads that took.

        A head is acknowledged, or this raises KafkaError, and only the topic knows whether it is there: open another.
        """
        written = 0
        for partition, begin in self._next.items():
            for offset, key, value in self._reader.read(self._decisions, partition, begin):
                self._next[partition] = offset + 1
                self._unsealed.append(read(Line(partition, offset, key, value)))
                self._subjects.add(self._unsealed[-1].subject)
                if len(self._subjects) >= MAX_SUBJECTS or len(self._unsealed) >= MAX_RECORDS:
                    written += self._seal(now_ms())
        self._reader.rest()
        return written + self._seal(now_ms())

    def _seal(self, now_ms: int) -> int:
        if not self._unsealed:
            return 0
        name, value = seal(self._sealed, self._unsealed, domain=self._domain, key=self._key, now_ms=now_ms)
        self._unsealed, self._subjects = [], set()
        sent = self._writer.send(self._topic, key=name.encode(), value=value)
        self._writer.flush()
        sent.get(timeout=30)
        return 1

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


def sealed_so_far(bootstrap_servers: str, domain: str, key: Ed25519PrivateKey) -> Sealed:
    """Where this key's heads end. Raises SetupFailed when there are heads and none is of this key."""
    heads = [
        Line(r.partition, r.offset, r.key, r.value)
        for r in kafka.read_all(bootstrap_servers, [topic("audit-heads").of(domain)], role="sealer")
    ]
    sealed, strange = resume(heads, domain=domain, public_key=public_text(key))
    if strange and not sealed.number:
        raise SetupFailed(
            f"{topic('audit-heads').of(domain)} has {len(heads)} records, none of them signed with the key of"
            f" this home ({AUDIT_KEY}.pem, public {public_text(key)}): bring back the key file they were made with"
        )
    if strange:
        print(f"{strange} records of the heads are none, or out of order: './flyball audit verify {domain}'")
    return sealed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("domain")
    parser.add_argument("--bootstrap-servers", help="a broker elsewhere; default: the running instance's")
    asked = parser.parse_args()
    stopping: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)  # a head a little later hurts nobody; a decision that waits for a core does
    home = Home.default()
    with home.alone(f"sealer-{asked.domain}"):  # two would write two heads of one number
        _seal_until(stopping, home, asked.domain, asked.bootstrap_servers)


def _seal_until(stopping: list[bool], home: Home, domain: str, servers: str | None) -> None:
    """Seals at intervals, and once more when there is something in `stopping`."""
    every_s = load_settings(domain).seal_every_s
    bootstrap = servers or str(home.read_state()["bootstrap_servers"])
    key = made_key(key_file(home, domain, AUDIT_KEY))
    sealer: Sealer | None = Sealer.open(bootstrap, domain, key)
    ready = home.run / "sealers" / f"{domain}.ready"
    ready.parent.mkdir(parents=True, exist_ok=True)
    ready.touch()
    is_last = False
    while not is_last:
        due_s = time.monotonic() + every_s
        while not stopping and time.monotonic() < due_s:
            time.sleep(_NAP_S)
        is_last = bool(stopping)
        try:
            sealer = sealer or Sealer.open(bootstrap, domain, key)
            sealer.look(lambda: int(time.time() * 1000))
        except (KafkaError, BrokerUnavailable) as error:
            print(f"not sealed, tried again in {every_s:g} s: {error!r}", flush=True)
            if sealer is not None:  # only the topic knows whether its last head is there
                sealer.close()
            sealer = None
    if sealer is not None:
        sealer.close()


if __name__ == "__main__":
    main()
