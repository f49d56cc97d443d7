"""Where the embedded parts live: everything Flyball writes is under one directory (default `.flyball/`)."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import SetupFailed
from udfs import broker_access

CHECKOUT = Path(__file__).resolve().parent.parent


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables for what is started inside; as they were before afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class Home:
    """Paths of one embedded instance. Two homes are two instances that do not know each other."""

    path: Path

    @classmethod
    def default(cls) -> Home:
        """The home named by FLYBALL_HOME, otherwise `.flyball/` in the checkout."""
        return cls(Path(os.environ.get("FLYBALL_HOME") or CHECKOUT / ".flyball").resolve())

    @property
    def jars(self) -> Path:
        """Fetched jars. Shared by all homes of a checkout: they are read only and pinned."""
        return CHECKOUT / ".flyball" / "jars"

    @property
    def code(self) -> Path:
        """Versions of the code that jobs run (ops/code_versions.py). Shared like the jars."""
        return CHECKOUT / ".flyball" / "code"

    @property
    def run(self) -> Path:
        """State of the running instance: ports, pid files, broker log, Flink files."""
        return self.path / "run"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def secrets(self) -> Path:
        """Certificates and passwords of a secure instance. They outlive `run`, which a fresh start empties."""
        return self.path / "secrets"

    @property
    def models(self) -> Path:
        """Content-addressed model artefacts, `<sha256>.onnx`."""
        return self.path / "models"

    @property
    def state_file(self) -> Path:
        return self.run / "instance.json"

    @property
    def is_secure(self) -> bool:
        """Whether the instance that runs here, or ran here last, has a broker that asks who speaks."""
        return bool(self.read_state().get("is_secure"))

    def broker_environment(self, *, is_secure: bool | None = None) -> dict[str, str]:
        """What a client of this instance's broker needs in its environment; default: as its state says."""
        needs = self.is_secure if is_secure is None else is_secure
        return {broker_access.VARIABLE: str(self.secrets) if needs else ""}

    @contextmanager
    def alone(self, what: str, *, patience_s: float = 20.0) -> Iterator[None]:
        """Inside, no other process of this home is `what`: two at once would each do what is to be done once.

        One that died, however, leaves nothing behind. Raises SetupFailed with the other's pid when it does not end.
        """
        path = self.path / "locks" / what
        path.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + patience_s
        with path.open("a+") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        file.seek(0)
                        raise SetupFailed(f"another {what} of {self.path} runs, pid {file.read().strip()}: end it first") from None
                time.sleep(0.1)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def read_state(self) -> dict[str, object]:
        """What the supervisor last wrote about this instance; empty when nothing runs here."""
        try:
            found = json.loads(self.state_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_state(self, state: dict[str, object]) -> None:
        self.run.mkdir(parents=True, exist_ok=True)
        staged = self.state_file.with_suffix(f".{os.getpid()}.new")
        staged.write_text(json.dumps(state, indent=2))
        staged.replace(self.state_file)
