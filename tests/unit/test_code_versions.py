"""Versions of the code lie side by side: each imports itself, and nothing of another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from contracts.errors import SetupFailed
from ops import code_versions
from ops.code_versions import kept, moved
from ops.home import CHECKOUT, Home

FILES = {
    "contracts/word.py": "WORD = 'one'\n",
    "udfs/speak.py": "def speak():\n    from contracts.word import WORD\n    return WORD\n",
    "jobs/environment.py": "from contracts.word import WORD\nfrom udfs.speak import (\n    speak,\n)\n",
    "sql/x/10.sql": "SELECT 1\n", "conf/x/domain.yaml": "a: 1\n",
    "ops/__init__.py": "", "ops/submit.py": "from jobs import environment\n",
}  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for place, text in FILES.items():
        path = tmp_path / "checkout" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "checkout"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(Home, "code", property(lambda self: self.path / "code"))
    return Home(tmp_path)


def test_two_versions_speak_for_themselves_in_one_interpreter(checkout: Path, home: Home) -> None:
    one = kept(home, checkout)
    (checkout / "contracts" / "word.py").write_text("WORD = 'two'\n")
    two = kept(home, checkout)
    assert one.name != two.name
    names = f"{one.name}, {two.name}"
    script = (
        f"import sys, importlib\nfor name in '{names}'.split(', '):\n"
        "    print(importlib.import_module(f'{name}.ops.submit').environment.speak())\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('contracts', 'udfs', 'jobs', 'ops')])"
    )
    said = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(home.code)}, capture_output=True, text=True, check=False)
    assert said.stdout.split("\n")[:3] == ["one", "two", "[]"], said.stderr


def test_equal_files_are_one_version_wherever_they_lie(checkout: Path, home: Home, tmp_path: Path) -> None:
    (checkout / "udfs" / "__pycache__").mkdir()
    (checkout / "udfs" / "__pycache__" / "speak.pyc").write_bytes(b"x")
    one = kept(home, checkout)
    (checkout.rename(tmp_path / "elsewhere") / "udfs" / "__pycache__" / "speak.pyc").unlink()
    assert kept(home, tmp_path / "elsewhere") == one
    assert (one.path / "sql" / "x" / "10.sql").read_text() == "SELECT 1\n"


def test_a_folder_that_is_no_checkout_is_refused(home: Home, tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="expected a checkout of Flyball"):
        kept(home, tmp_path)


def test_the_code_of_a_running_job_that_is_gone_is_told(home: Home) -> None:
    with pytest.raises(SetupFailed, match="expected the code of a running job"):
        code_versions.named(home, "flyball_0")


def test_an_import_that_cannot_be_moved_is_refused_with_its_place() -> None:
    with pytest.raises(SetupFailed, match=r"x\.py:2: expected 'from contracts\.word import"):
        moved("import os\nimport contracts.word\n", "v", Path("x.py"))


def test_every_file_of_ours_can_be_moved() -> None:
    for place, path in code_versions._files(CHECKOUT):
        if path.suffix == ".py":
            told = moved(path.read_text(), "flyball_x", path)
            compile(told, place, "exec")
            assert "\nfrom contracts" not in told and "\nfrom udfs" not in told and "\nfrom jobs" not in told
