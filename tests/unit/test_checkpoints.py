"""Which checkpoint is the newest, and which ones are deleted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest

from contracts.errors import StateRefused
from ops.checkpoints import (
    checkpoint_id,
    checkpoints_folder,
    forget_others,
    latest_checkpoints,
    leave_behind,
    plans_folder,
)
from ops.home import Home
from ops.submission import forget_older
from tests.flink_stand_in import Flink, flink, job_id, write_state

DOMAIN = "machines"
FIRST, SECOND, THIRD = job_id(1), job_id(2), job_id(3)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def cluster(home: Home) -> Iterator[Flink]:
    with flink(home) as stand_in:
        yield stand_in


@pytest.fixture
def folder(home: Home) -> Path:
    return checkpoints_folder(home, DOMAIN, "govern")


def checkpoint(folder: Path, job: str, number: int, *, written_at: int = 1_000) -> Path:
    return at(write_state(folder / job / f"chk-{number}", number), written_at)


def savepoint(folder: Path, job: str, number: int, *, written_at: int = 1_000) -> Path:
    return at(write_state(folder / "savepoints" / job / "savepoint-1", number), written_at)


def at(place: Path, written_at: int) -> Path:
    os.utime(place / "_metadata", (written_at, written_at))
    return place


def note(folder: Path, job: str) -> Path:
    """What the operators of a submission mean."""
    noted = folder / "operators" / f"{job}.json"
    noted.parent.mkdir(parents=True, exist_ok=True)
    noted.write_text("[]")
    return noted


def newest(home: Home) -> str | None:
    return latest_checkpoints(home, DOMAIN).get("govern")


# ------------------------------------------------------------------------------------- the newest


def test_the_id_is_the_one_flink_wrote(tmp_path: Path) -> None:
    """The beginning of the file that Flink 2.2.1 wrote for its checkpoint 1464."""
    metadata = tmp_path / "_metadata"
    metadata.write_bytes(bytes.fromhex("4960672d0000000600000000000005b80000000000000007"))
    assert checkpoint_id(metadata) == 1464


@pytest.mark.parametrize("content", [b"", bytes.fromhex("4960672d000000060000"), b"sixteen bytes of something else"])
def test_an_id_is_refused_when_the_file_does_not_begin_as_flinks_do(tmp_path: Path, content: bytes) -> None:
    metadata = tmp_path / "_metadata"
    metadata.write_bytes(content)
    with pytest.raises(StateRefused, match="expected the metadata of a checkpoint"):
        checkpoint_id(metadata)


def test_the_highest_id_is_the_newest_when_a_copy_lost_the_times(home: Home, folder: Path) -> None:
    savepoint(folder, FIRST, 20, written_at=3_000)
    last = checkpoint(folder, SECOND, 101, written_at=1_000)
    checkpoint(folder, SECOND, 99, written_at=2_000)
    assert newest(home) == last.as_uri()


def test_a_savepoint_counts_with_the_checkpoints(home: Home, folder: Path) -> None:
    checkpoint(folder, FIRST, 9)
    last = savepoint(folder, FIRST, 10)
    assert newest(home) == last.as_uri()


def test_the_times_tell_only_equal_ids_apart(home: Home, folder: Path) -> None:
    checkpoint(folder, FIRST, 5, written_at=1_000)
    last = checkpoint(folder, SECOND, 5, written_at=2_000)
    checkpoint(folder, THIRD, 4, written_at=3_000)
    assert newest(home) == last.as_uri()


def test_a_half_written_one_is_none(home: Home, folder: Path) -> None:
    whole = checkpoint(folder, FIRST, 5)
    metadata = checkpoint(folder, FIRST, 6) / "_metadata"
    metadata.write_bytes(metadata.read_bytes()[:10])
    assert newest(home) == whole.as_uri()
    (whole / "_metadata").unlink()
    assert newest(home) is None


# ------------------------------------------------------------------------------------ begun anew


def test_what_was_left_behind_counts_until_what_began_anew_has_a_checkpoint(home: Home, folder: Path) -> None:
    before = savepoint(folder, FIRST, 500)
    leave_behind(home, DOMAIN, "govern")
    assert newest(home) == before.as_uri(), "it is all there is"
    first = checkpoint(folder, SECOND, 1)
    assert newest(home) == first.as_uri()


def test_what_was_left_behind_counts_again_when_it_is_gone_back_to(home: Home, folder: Path, cluster: Flink) -> None:
    before = savepoint(folder, FIRST, 500)
    leave_behind(home, DOMAIN, "govern")
    checkpoint(folder, SECOND, 1)
    forget_others(home, DOMAIN, "govern", before.as_uri())
    assert newest(home) == before.as_uri()
    after = checkpoint(folder, THIRD, 501)
    assert newest(home) == after.as_uri()


# --------------------------------------------------------------------------------------- deleted


def test_older_state_is_deleted_when_a_job_starts_from_a_checkpoint(home: Home, folder: Path, cluster: Flink) -> None:
    old = [checkpoint(folder, FIRST, 5), savepoint(folder, FIRST, 6)]
    kept = [checkpoint(folder, SECOND, 7), checkpoint(folder, SECOND, 8)]
    shared = folder / SECOND / "shared"
    shared.mkdir()
    forget_others(home, DOMAIN, "govern", kept[1].as_uri())
    assert not any(place.exists() for place in old) and not (folder / FIRST).exists()
    assert all(place.exists() for place in (*kept, shared))
    assert not (folder / "gone").exists()


def test_all_but_the_savepoint_is_deleted_when_a_job_starts_from_it(home: Home, folder: Path, cluster: Flink) -> None:
    checkpoint(folder, FIRST, 5)
    older = savepoint(folder, SECOND, 4)
    kept = savepoint(folder, FIRST, 6)
    forget_others(home, DOMAIN, "govern", f"file:{kept}")  # as Flink writes it
    assert kept.exists() and not older.exists() and not (folder / FIRST).exists()


def test_a_job_that_has_not_ended_keeps_its_state(home: Home, folder: Path, cluster: Flink) -> None:
    first, second = (cluster.start(f"{DOMAIN}.govern", state) for state in ("RESTARTING", "CANCELED"))
    of_first, of_second = checkpoint(folder, first, 5), checkpoint(folder, second, 6)
    chosen = savepoint(folder, THIRD, 7)
    forget_others(home, DOMAIN, "govern", chosen.as_uri())
    assert of_first.exists() and not of_second.exists()


def test_what_operators_mean_is_kept_for_what_is_kept_and_for_the_plan(home: Home, folder: Path, cluster: Flink) -> None:
    """A lost job is submitted from its plan, and its note copied (Resubmission)."""
    chosen = checkpoint(folder, FIRST, 8)
    running, planned, old = cluster.start(f"{DOMAIN}.govern"), job_id(8), job_id(9)
    plans = plans_folder(home, DOMAIN, "govern")
    plans.mkdir(parents=True)
    (plans / planned).touch()
    kept = [note(folder, job) for job in (FIRST, running, planned)]
    gone = note(folder, old)
    forget_others(home, DOMAIN, "govern", chosen.as_uri())
    assert all(path.exists() for path in kept) and not gone.exists()


def test_nothing_is_deleted_when_the_state_lies_elsewhere(home: Home, folder: Path, cluster: Flink, tmp_path: Path) -> None:
    """Until its first checkpoint, what a job would start from after a crash is here."""
    kept = checkpoint(folder, FIRST, 8)
    forget_others(home, DOMAIN, "govern", write_state(tmp_path / "elsewhere" / "savepoint-1", 9).as_uri())
    assert kept.exists()


def test_only_folders_of_jobs_are_deleted(home: Home, folder: Path, cluster: Flink) -> None:
    mine = write_state(folder / "kept-by-hand" / "chk-1", 1)
    chosen = checkpoint(folder, FIRST, 8)
    other_job = checkpoint(checkpoints_folder(home, DOMAIN, "context"), SECOND, 3)
    forget_others(home, DOMAIN, "govern", chosen.as_uri())
    assert mine.exists() and other_job.exists()


def test_nothing_is_deleted_and_the_start_goes_on_when_flink_does_not_answer(home: Home, folder: Path) -> None:
    home.write_state({"ports": {"rest": 1}})
    old, chosen = checkpoint(folder, FIRST, 8), checkpoint(folder, SECOND, 9)
    with pytest.raises(httpx.HTTPError):
        forget_others(home, DOMAIN, "govern", chosen.as_uri())
    forget_older(home, DOMAIN, "govern", chosen.as_uri())
    assert old.exists()


def test_what_a_killed_command_was_deleting_is_no_state_and_goes_the_next_time(home: Home, folder: Path, cluster: Flink) -> None:
    write_state(folder / "gone" / "0" / "chk-99", 99)
    chosen = checkpoint(folder, FIRST, 8)
    assert newest(home) == chosen.as_uri()
    forget_others(home, DOMAIN, "govern", chosen.as_uri())
    assert not (folder / "gone").exists()


def test_the_newest_is_found_when_a_folder_goes_while_it_is_looked_for(
    home: Home, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest, passing = checkpoint(folder, FIRST, 7), folder / SECOND
    passing.mkdir()
    scandir = os.scandir

    def then_it_goes(path: str | Path) -> nullcontext[list[os.DirEntry[str]]]:
        with scandir(path) as found:
            entries = list(found)
        if Path(path) == folder and passing.exists():
            passing.rmdir()
        return nullcontext(entries)

    monkeypatch.setattr(os, "scandir", then_it_goes)
    assert latest_checkpoints(home, DOMAIN) == {"govern": newest.as_uri()}
    assert not passing.exists()
