"""Settings of a job: defaults, file, environment, arguments; and what is said when one is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import SetupFailed
from jobs import settings as module
from jobs.settings import Settings, load_settings, settings_from_arguments


@pytest.fixture
def domain_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """conf/machines/domain.yaml of a checkout of its own."""
    monkeypatch.setattr(module, "ROOT", tmp_path)
    file = tmp_path / "conf" / "machines" / "domain.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("max_hops: 4\nparallelism: 2\n")
    return file


def test_the_file_wins_over_defaults_and_the_environment_over_the_file(
    domain_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYBALL_MAX_HOPS", "5")
    monkeypatch.setenv("FLYBALL_BOOTSTRAP_SERVERS", "kafka:9092")
    found = load_settings("machines")
    assert (found.max_hops, found.parallelism, found.bootstrap_servers) == (5, 2, "kafka:9092")
    assert found.delivery == Settings(domain="machines").delivery


def test_arguments_win_over_the_environment(domain_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYBALL_PARALLELISM", "3")
    monkeypatch.setenv("FLYBALL_DELIVERY", "exactly_once")
    found = settings_from_arguments(["--", "--domain", "machines", "--parallelism", "1", "--delivery", "at_least_once"])
    assert (found.parallelism, found.delivery) == (1, "at_least_once")
    assert settings_from_arguments(["--domain", "machines"]).parallelism == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_hop: 4\n", "max_hop"),
        ("max_hops: many\n", "max_hops"),
        ("max_hops: 0\n", "max_hops"),
        ("delivery: perhaps_once\n", "delivery"),
        ("- 1\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("a: [1\n", "not YAML"),
    ],
)
def test_a_file_is_refused_with_its_name_when_it_is_wrong(domain_yaml: Path, text: str, told: str) -> None:
    domain_yaml.write_text(text)
    with pytest.raises(SetupFailed, match=r"domain\.yaml") as refused:
        load_settings("machines")
    assert told in str(refused.value)


def test_an_environment_variable_is_refused_when_it_is_wrong(
    domain_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYBALL_PARALLELISM", "eight")
    with pytest.raises(SetupFailed, match=r"parallelism.*eight"):
        load_settings("machines")


def test_the_models_address_is_refused_untold_when_a_password_is_in_it(domain_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYBALL_MODELS_URL", "https://ada:s3cret@models.example/v1")
    with pytest.raises(SetupFailed, match="OPENAI_API_KEY") as refused:
        load_settings("machines")
    assert "s3cret" not in str(refused.value)
    monkeypatch.setenv("FLYBALL_MODELS_URL", "https://models.example/v1/@latest")
    assert load_settings("machines").models_url == "https://models.example/v1/@latest"


@pytest.mark.parametrize("name", ["nothing", "../etc", ""])
def test_the_domains_there_are_are_named_when_one_is_unknown(domain_yaml: Path, name: str) -> None:
    with pytest.raises(SetupFailed, match="machines"):
        load_settings(name)


@pytest.mark.parametrize("domain", ["loans", "machines", "payments"])
def test_shipped_settings_are_accepted(domain: str) -> None:
    assert load_settings(domain).domain == domain
