"""docker/prepare.py: what people sign with stays, wherever it runs and however often. On a broker in memory."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from contracts.approval import Person
from ops import kafka, people
from ops.home import CHECKOUT, Home
from ops.people import key_file, made_key, own_key
from tests.kafka_stand_in import StandInBroker, StandInConsumer, StandInProducer
from udfs.policy.signing import public_text

EVERYBODY = ["ada", "grace", "edsger"]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> StandInBroker:
    found = StandInBroker()
    monkeypatch.setattr(kafka, "consumer", lambda _servers, **_options: StandInConsumer(found))
    monkeypatch.setattr(kafka, "producer", lambda _servers, **_options: StandInProducer(found))
    monkeypatch.setattr(kafka, "wait_for_broker", lambda _servers, **_options: None)
    monkeypatch.setattr(kafka, "create_topics", lambda _servers, _domain: None)
    return found


@pytest.fixture
def script(broker: StandInBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.delenv("FLYBALL_SECRETS", raising=False)
    monkeypatch.setenv("FLYBALL_HOME", str(tmp_path))
    spec = importlib.util.spec_from_file_location("prepare", CHECKOUT / "docker" / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published_keys() -> dict[str, str]:
    return {name: person.public_key for name, person in people.published("a broker", "machines").items()}


def test_no_key_is_made_and_it_is_said_who_cannot_answer_when_the_home_does_not_last(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cooling@1" in script.prepare("machines")
    assert published_keys() == {}
    assert not (tmp_path / "keys").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("machines: ada, grace, edsger cannot answer, having no key.")
    assert "./flyball producers keygen machines" in line and "public_key into conf/machines/people.yaml" in line


def test_nothing_is_published_again_when_keys_lie_on_a_disk_that_stays(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["prepare.py", "--make-keys", "machines"])
    script.main()
    first = published_keys()
    assert first == {name: public_text(own_key(key_file(Home(tmp_path), "machines", name))) for name in EVERYBODY}
    capsys.readouterr()
    script.main()
    assert published_keys() == first
    assert capsys.readouterr() == ("machines: ready\n", "")


@pytest.mark.parametrize("makes_keys", [False, True])
def test_a_published_key_stays_when_the_home_is_another(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, makes_keys: bool
) -> None:
    script.prepare("machines", makes_keys=True)
    before = published_keys()
    monkeypatch.setenv("FLYBALL_HOME", str(tmp_path / "another"))
    assert script.prepare("machines", makes_keys=makes_keys) == []
    assert published_keys() == before
    assert not (tmp_path / "another" / "keys").exists()
    assert "ada, grace, edsger can answer with the key published before only" in capsys.readouterr().err


# ------------------------------------------------------------------------------ whose key is taken

GIVEN, PUBLISHED = "g" * 43, "p" * 43


@pytest.fixture
def people_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(people, "ROOT", tmp_path)
    file = people.people_file("machines")
    file.parent.mkdir(parents=True)
    file.write_text("roles: {approver: {}}\npeople:\n  - {person: ada, roles: [approver]}\n")
    return file


def ada(**fields: object) -> Person:
    return Person.model_validate({"person": "ada", "roles": ("approver",), "public_key": PUBLISHED, **fields})


def test_a_right_that_was_taken_away_goes_when_the_key_stays(people_file: Path, tmp_path: Path) -> None:
    known = {"ada": ada(roles=("approver", "director"), may=("override",))}
    assert people.people(Home(tmp_path), "machines", known=known, makes_keys=False) == [ada()]


def test_somebody_who_was_removed_does_not_get_the_old_key_back(people_file: Path, tmp_path: Path) -> None:
    known = {"ada": ada(is_active=False)}
    assert people.people(Home(tmp_path), "machines", known=known, makes_keys=False) == []
    (back,) = people.people(Home(tmp_path), "machines", known=known)
    assert back.public_key not in ("", PUBLISHED)


def test_the_key_of_the_file_is_taken_before_one_at_home_and_that_before_one_published(people_file: Path, tmp_path: Path) -> None:
    home, known = Home(tmp_path), {"ada": ada()}
    own = public_text(made_key(key_file(home, "machines", "ada")))
    (taken,) = people.people(home, "machines", known=known, makes_keys=False)
    assert taken.public_key == own
    people_file.write_text(people_file.read_text().replace("[approver]}", f"[approver], public_key: {GIVEN}}}"))
    (taken,) = people.people(home, "machines", known=known, makes_keys=False)
    assert taken.public_key == GIVEN
    assert people.without_key(home, "machines") == []
