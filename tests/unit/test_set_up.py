"""What `./flyball` does before Python runs, with a stand-in for Python: CI starts from nothing with the real one."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from ops.home import CHECKOUT

TOOLS = ("bash", "cat", "cksum", "cp", "dirname", "flock", "mkdir", "mv", "rm", "sleep")
LOCKS = ("requirements-build.lock", "requirements.lock")
# Writes down how it is called; `-m venv` puts it into the new environment too; fails or waits where it is told to.
STAND_IN = """#!{bash}
echo "${{0%/*}}: $*" >> "$CALLS"
case "$*" in
    "-c "*) exit "${{IS_OTHER_PYTHON:-0}}" ;;
    *"-m venv"*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; sleep "${{VENV_TAKES:-0}}" ;;
    *"-m ops.cli"*) echo "${{*: 4}}" ;;
esac
if [ -n "${{FAILS:-}}" ]; then case "$*" in *"$FAILS"*) exit 1 ;; esac; fi
"""


@dataclass(frozen=True)
class Checkout:
    """A copy of what the set-up reads, with its own PATH."""

    path: Path
    calls: Path
    environment: dict[str, str]

    def start(self, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.path / "flyball", "status", "--json"], env=self.environment | variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, **variables: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        process = self.start(**variables)
        said = process.communicate(timeout=20)
        return process.returncode, *said

    def called(self) -> list[str]:
        """What Python was asked for since the last question, without asking for its version: venv, pip (and how), ops.cli."""
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return [_short(call) for call in calls if ": -c " not in call]

    @property
    def stamp(self) -> Path:
        return self.path / ".venv" / "flyball.lock.sha256"

    def change_a_lock(self) -> None:
        with (self.path / "requirements.lock").open("a") as lock:
            lock.write("# changed\n")


def _short(call: str) -> str:
    module = call.split(" -m ")[1].split()[0]
    return f"{module} --dry-run" if "--dry-run" in call else module


INSTALLED = ["pip", "pip"]  # one call a lock
BUILT = ["venv", *INSTALLED]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    path, tools = tmp_path / "a checkout", tmp_path / "bin"
    path.mkdir()
    tools.mkdir()
    for name in ("flyball", *LOCKS):
        shutil.copy(CHECKOUT / name, path)
    for name in TOOLS:
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    python = tools / "python3.11"
    python.write_text(STAND_IN.format(bash=shutil.which("bash")))
    python.chmod(0o755)
    calls = tmp_path / "calls"
    return Checkout(path, calls, {"PATH": str(tools), "CALLS": str(calls)})


def test_the_first_call_builds_the_environment_and_runs_the_command(checkout: Checkout) -> None:
    code, said, told = checkout.run()

    assert (code, said) == (0, "status --json\n")
    assert "first start here" in told
    assert checkout.called() == [*BUILT, "ops.cli"]
    assert checkout.stamp.read_text().endswith(f" {checkout.path}")
    assert sorted(each.name for each in checkout.path.iterdir()) == [".flyball", ".venv", "flyball", *LOCKS]


def test_the_second_call_starts_without_pip_and_without_looking_for_python(checkout: Checkout) -> None:
    checkout.run()
    checkout.called()

    assert checkout.run(IS_OTHER_PYTHON="1") == (0, "status --json\n", "")
    assert checkout.called() == ["ops.cli"]


def test_it_is_told_what_to_install_when_there_is_no_python_3_11(checkout: Checkout) -> None:
    code, said, told = checkout.run(IS_OTHER_PYTHON="1")

    assert (code, said) == (69, "")
    assert "expected Python 3.11 on PATH" in told and "FLYBALL_PYTHON=/path/to/python3.11" in told
    assert not (checkout.path / ".venv").exists()


def test_the_python_that_is_named_comes_before_those_on_the_path(checkout: Checkout, tmp_path: Path) -> None:
    named = shutil.copy(Path(checkout.environment["PATH"]) / "python3.11", tmp_path / "mine")

    assert checkout.run(FLYBALL_PYTHON=str(named))[0] == 0
    assert f"{tmp_path}: -P -m venv" in checkout.calls.read_text()


def test_it_is_told_which_package_to_install_when_python_makes_no_environments(checkout: Checkout) -> None:
    code, _, told = checkout.run(FAILS="-m venv")

    assert code == 69 and "install the package python3.11-venv" in told
    assert not checkout.stamp.exists()


@pytest.mark.parametrize("fails", LOCKS)
def test_a_half_finished_set_up_is_noticed_and_finished_from_nothing(checkout: Checkout, fails: str) -> None:
    code, said, told = checkout.run(FAILS=fails)
    assert (code, said) == (69, "") and "installing packages failed" in told
    (half_made := checkout.path / ".venv" / "half-made").touch()
    checkout.called()

    assert checkout.run()[:2] == (0, "status --json\n")
    assert checkout.called() == [*BUILT, "ops.cli"]
    assert not half_made.exists()


def test_a_changed_lock_is_installed_into_the_environment_that_is_there(checkout: Checkout) -> None:
    checkout.run()
    before = checkout.stamp.read_text()
    (package := checkout.path / ".venv" / "package").touch()
    checkout.change_a_lock()
    checkout.called()

    code, said, told = checkout.run()

    assert (code, said) == (0, "status --json\n") and "the locks have changed" in told
    assert checkout.called() == ["pip --dry-run", "pip --dry-run", *INSTALLED, "ops.cli"]
    assert package.exists() and checkout.stamp.read_text() != before
    assert checkout.run() == (0, "status --json\n", "")


def test_the_environment_stays_as_it_was_when_a_changed_lock_cannot_be_fetched(checkout: Checkout) -> None:
    checkout.run()
    before, lock = checkout.stamp.read_text(), (checkout.path / "requirements.lock").read_text()
    checkout.change_a_lock()
    checkout.called()

    assert checkout.run(FAILS="pip install")[0] == 69
    assert checkout.called() == ["pip --dry-run"]
    assert checkout.stamp.read_text() == before

    (checkout.path / "requirements.lock").write_text(lock)  # back to the commit before: works at once, without a network
    assert checkout.run(FAILS="pip install") == (0, "status --json\n", "")


def test_an_update_that_broke_off_is_made_from_nothing(checkout: Checkout) -> None:
    checkout.run()
    checkout.change_a_lock()
    assert checkout.run(FAILS="--require-hashes --only-binary")[0] == 69  # the dry run has one word more between them
    assert not checkout.stamp.exists()
    checkout.called()

    assert checkout.run()[0] == 0
    assert checkout.called() == [*BUILT, "ops.cli"]


def test_an_environment_that_was_moved_is_built_anew(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run()
    moved = Checkout(checkout.path.rename(tmp_path / "elsewhere"), checkout.calls, checkout.environment)
    moved.called()

    assert moved.run()[:2] == (0, "status --json\n")
    assert moved.called() == [*BUILT, "ops.cli"]


@pytest.mark.skipif(shutil.which("flock") is None, reason="without flock nobody waits")
def test_of_two_first_calls_at_once_the_second_waits_for_the_first(checkout: Checkout) -> None:
    both = [checkout.start(VENV_TAKES="0.2") for _ in range(2)]
    said = [process.communicate(timeout=20)[0] for process in both]

    assert said == ["status --json\n"] * 2
    assert sorted(checkout.called()) == sorted([*BUILT, "ops.cli", "ops.cli"])
