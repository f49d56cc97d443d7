"""docker-compose.yml and docker/: whole, pinned, and the same settings as the embedded instance."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyflink
import pytest
from ruamel.yaml import YAML

from jobs.settings import Settings
from ops.flink_jobs import JOBS
from ops.home import CHECKOUT
from ops.setup import read_jars_lock

COMPOSE: dict[str, Any] = YAML(typ="safe").load((CHECKOUT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (CHECKOUT / "docker" / "Dockerfile").read_text()
DOMAIN = "${FLYBALL_DOMAIN:-machines}"


def _version(artifact: str) -> str:
    return next(jar.coordinate.rsplit(":", 1)[1] for jar in read_jars_lock() if f":{artifact}:" in jar.coordinate)


def loaded(name: str) -> ModuleType:
    """A program of docker/."""
    spec = importlib.util.spec_from_file_location(name, CHECKOUT / "docker" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def configure() -> ModuleType:
    return loaded("configure")


@pytest.fixture(scope="module")
def config(configure: ModuleType) -> dict[str, Any]:
    """The containers' config.yaml, made from the one in the Flink distribution."""
    shipped = Path(pyflink.__file__).parent / "conf" / "config.yaml"
    made: dict[str, Any] = configure.configuration(YAML(typ="safe").load(shipped.read_text()))
    return made


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def test_every_image_is_pinned_to_the_version_of_the_locks() -> None:
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{_version('kafka_2.13')}"
    stages = re.findall(r"(?m)^FROM (\S+)", DOCKERFILE)
    assert [re.split(r"[:-]", stage)[:2] for stage in stages] == [
        ["flink", _version("flink-sql-gateway")],
        ["python", stages[1].split(":")[1].split("-")[0]],
    ]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", stages[1])
    for service in SERVICES.values():
        assert not service["image"].endswith(":latest") and ":" in service["image"]


def test_the_image_installs_the_locked_packages_and_jars() -> None:
    assert len(re.findall("pip install .*--require-hashes", DOCKERFILE)) == DOCKERFILE.count("pip install") == 2
    assert "fetch_jars(" in DOCKERFILE, "jars are checked against conf/jars.lock"
    assert "apache-flink==2.2.1" in (CHECKOUT / "requirements.lock").read_text()


@pytest.mark.parametrize("file", ["flyball", "docker/Dockerfile"])
def test_what_comes_as_source_is_built_by_the_pinned_builder_alone(file: str) -> None:
    builder, packages = re.findall(r"(?m)^(?!#).*-r \S*?requirements(?:-build)?\.lock.*$", (CHECKOUT / file).read_text())

    assert "--only-binary :all:" in builder and "requirements-build.lock" in builder, "the builder comes as a wheel, before all else"
    assert "--no-build-isolation" in packages and "requirements.lock" in packages, "pip would fetch the newest builder, whatever it is"


def test_every_setting_of_the_embedded_cluster_holds_in_containers(config: dict[str, Any]) -> None:
    embedded = YAML(typ="safe").load((CHECKOUT / "conf" / "flink.yaml").read_text())
    found = dict(_leaves(config))

    for path, value in _leaves(embedded):
        assert found[path] == value, path


def test_containers_reach_each_other_when_configured(config: dict[str, Any]) -> None:
    found = {".".join(path): value for path, value in _leaves(config)}

    assert found["jobmanager.rpc.address"] == found["rest.address"] == "jobmanager"
    assert "jobmanager" in SERVICES
    for name in ("jobmanager.bind-host", "taskmanager.bind-host", "rest.bind-address"):
        assert found[name] == "0.0.0.0"
    assert "taskmanager.host" not in found, "each TaskManager tells its own"
    assert not any("process.size" in name for name in found), "sizes are explicit in conf/flink.yaml"
    assert "--add-opens=java.base/java.lang=ALL-UNNAMED" in found["env.java.opts.all"]
    assert found["env.java.opts.taskmanager"] in (CHECKOUT / "ops" / "cluster.py").read_text()


def test_every_value_stands_on_one_line_as_the_scripts_of_flink_want(
    configure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text((Path(pyflink.__file__).parent / "conf" / "config.yaml").read_text())
    monkeypatch.setattr("sys.argv", ["configure.py", str(path)])

    configure.main()

    assert all(re.match(r"\s*[\w.-]+:", line) for line in path.read_text().splitlines())


def test_the_broker_has_the_settings_of_the_embedded_one() -> None:
    kafka = SERVICES["kafka"]

    assert "./conf/broker.properties:/mnt/shared/config/server.properties:ro" in kafka["volumes"]
    assert "PLAINTEXT://kafka:19092" in kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert kafka["environment"]["KAFKA_LOG_DIRS"] in [v.split(":")[1] for v in kafka["volumes"]]


def test_everybody_speaks_to_the_broker_at_its_address_among_containers() -> None:
    for name, service in SERVICES.items():
        if name != "kafka":
            assert service["environment"]["FLYBALL_BOOTSTRAP_SERVERS"] == "kafka:19092", name
    assert "bootstrap_servers" in Settings.model_fields


@pytest.mark.parametrize("job", JOBS)
def test_each_job_is_submitted_once_its_topics_are_there(job: str) -> None:
    service = SERVICES[f"submit-{job}"]

    assert service["command"] == ["python", "docker/submit.py", DOMAIN, job]
    assert (CHECKOUT / "jobs" / f"{job}.py").is_file()
    assert service["depends_on"]["prepare"]["condition"] == "service_completed_successfully"
    assert service["depends_on"]["jobmanager"]["condition"] == "service_healthy"
    assert service["restart"] == "no"


def test_a_submission_asks_the_cluster_it_submits_to(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    YAML().dump(config, tmp_path / "config.yaml")
    monkeypatch.setenv("FLINK_CONF_DIR", str(tmp_path))

    assert loaded("submit").rest_url() == "http://jobmanager:8081"
    assert "FLINK_HOME=/opt/flink" in DOCKERFILE and "docker/configure.py /opt/flink/conf/config.yaml" in DOCKERFILE


def test_keys_of_people_are_made_on_a_volume_of_their_own() -> None:
    prepare = SERVICES["prepare"]

    assert prepare["command"] == ["python", "docker/prepare.py", "--make-keys", DOMAIN]
    (volume,) = prepare["volumes"]
    assert f"FLYBALL_HOME={volume.partition(':')[2]}\n" in DOCKERFILE
    assert [name for name in SERVICES if volume in both(name)["volumes"]] == ["prepare"]


def test_whoever_touches_checkpoints_shares_their_volume(config: dict[str, Any]) -> None:
    directory = config["execution"]["checkpointing"]["dir"].removeprefix("file://")

    for name in ("jobmanager", "taskmanager", *(f"submit-{job}" for job in JOBS)):
        assert f"checkpoints:{directory}" in SERVICES[name]["volumes"], name
        assert SERVICES[name]["environment"]["FLYBALL_CHECKPOINTS"] == f"file://{directory}", name


def test_dependencies_and_volumes_exist_and_files_named_are_there() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES, name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], other
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (CHECKOUT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"]
        for word in service.get("command", []):
            if word.endswith(".py"):
                assert (CHECKOUT / word).is_file(), word


def test_ports_are_published_to_this_machine_only() -> None:
    ports = {name: service.get("ports", []) for name, service in SERVICES.items()}

    assert ports["kafka"] == ["127.0.0.1:9092:9092"]
    assert ports["jobmanager"] == ["127.0.0.1:8081:8081"]
    assert ports["sql-gateway"] == ["127.0.0.1:8083:8083"]
    assert all(port.startswith("127.0.0.1:") for listed in ports.values() for port in listed)


def test_restarts_are_bounded() -> None:
    for name, service in SERVICES.items():
        assert re.fullmatch(r"no|on-failure:\d", service.get("restart", "no")), name


# ------------------------------------------------------------------------- docker-compose.secure.yml

SECURE: dict[str, Any] = YAML(typ="safe").load((CHECKOUT / "docker-compose.secure.yml").read_text())


def both(name: str) -> dict[str, Any]:
    """A service as Compose merges it from the two files."""
    base, over = SERVICES.get(name, {}), SECURE["services"].get(name, {})
    merged = {**base, **over}
    for key in ("environment", "depends_on", "healthcheck"):
        if key in base or key in over:
            merged[key] = {**base.get(key, {}), **over.get(key, {})}
    merged["volumes"] = [*base.get("volumes", []), *over.get("volumes", [])]
    return merged


def properties(environment: dict[str, str]) -> dict[str, str]:
    """The broker's properties as the image makes them: ___ is -, __ is _, _ is a dot; $$ is Compose's $."""
    found = {}
    for name, value in environment.items():
        if name.startswith("KAFKA_"):
            plain = name.removeprefix("KAFKA_").replace("___", "-").replace("__", "\0").replace("_", ".")
            found[plain.replace("\0", "_").lower()] = value.replace("$$", "$")
    return found


def test_every_security_setting_of_the_embedded_broker_holds_in_containers() -> None:
    text = (CHECKOUT / "conf" / "broker.secure.properties").read_text()
    embedded = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    found = properties(both("kafka")["environment"])

    extra = ",HOST:SASL_SSL"  # for clients on the machine of the containers
    assert found["listener.security.protocol.map"].removesuffix(extra) == embedded.pop("listener.security.protocol.map")
    assert {name: found.get(name) for name in embedded} == embedded
    assert found["listener.name.host.scram-sha-512.sasl.jaas.config"] == found["listener.name.clients.scram-sha-512.sasl.jaas.config"]


def test_no_listener_of_the_secure_broker_is_plain() -> None:
    environment = both("kafka")["environment"]
    kinds = dict(entry.split(":") for entry in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    listeners = {entry.split("://")[0] for entry in environment["KAFKA_LISTENERS"].split(",")}

    assert listeners == set(kinds)
    assert set(kinds.values()) == {"SSL", "SASL_SSL"}
    # The image asks for Java key stores by other names where an advertised listener is called SSL.
    assert "SSL://" not in environment["KAFKA_ADVERTISED_LISTENERS"]


def test_everybody_who_speaks_to_the_secure_broker_has_secrets_and_only_its_own() -> None:
    volumes = {
        name: next((v for v in both(name)["volumes"] if ":/var/lib/flyball/secrets" in v), None)
        for name in SERVICES if name != "kafka"
    }  # fmt: skip

    assert all(volume is not None and volume.endswith(":ro") for volume in volumes.values()), volumes
    for name in volumes:
        assert both(name)["environment"]["FLYBALL_SECRETS"] == "/var/lib/flyball/secrets", name
    assert [name for name, volume in volumes.items() if str(volume).startswith("prepare-secrets:")] == ["prepare"]
    assert [name for name in SECURE["services"] if any(v.startswith("authority:") for v in both(name)["volumes"])] == ["secrets"]
    assert both("prepare")["environment"]["FLYBALL_INTERNAL_SERVERS"] in both("kafka")["environment"]["KAFKA_ADVERTISED_LISTENERS"]


def test_what_the_secure_file_names_exists() -> None:
    declared = {*COMPOSE["volumes"], *SECURE["volumes"]}
    for name in {*SERVICES, *SECURE["services"]}:
        service = both(name)
        for volume in service["volumes"]:
            assert volume.startswith("./") or volume.split(":")[0] in declared, volume
        for other in service.get("depends_on", {}):
            assert other in {*SERVICES, *SECURE["services"]}
        assert "ports" not in SECURE["services"].get(name, {})
    assert {*SECURE["services"]} == {*SERVICES, "secrets"}
    assert all((CHECKOUT / word).is_file() for word in SECURE["services"]["secrets"]["command"] if word.endswith(".py"))


def test_each_kind_of_container_is_handed_what_it_needs_and_no_more(tmp_path: Path) -> None:
    module = loaded("hand_out")

    module.hand_out(tmp_path, "machines")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    module.hand_out(tmp_path, "machines")

    assert {path: path.read_bytes() for path in before} == before, "what is there stays"
    there = {folder.name: {path.name for path in folder.iterdir()} for folder in tmp_path.iterdir()}
    assert there["broker"] == {"ca.pem", "broker.pem", "client.properties"}
    assert there["prepare"] == there["authority"] - {"ca.key.pem"}
    assert there["actuator"] == {"ca.pem", "machines.actuator.properties"}
    assert there["sealer"] == {"ca.pem", "machines.sealer.properties"}
    assert not {"ca.key.pem", "broker.pem", "machines.admin.properties", "machines.people.properties"} & there["jobs"]
    handed = {f"/secrets/{folder}" for folder in there}
    mounted = {volume.split(":")[1] for volume in SECURE["services"]["secrets"]["volumes"]}
    assert mounted == handed


def test_prepare_lets_nobody_log_in_any_more_who_was_removed(tmp_path: Path) -> None:
    module, removed = loaded("hand_out"), "machines.producer-gateway.properties"
    module.hand_out(tmp_path, "machines")
    (tmp_path / "authority" / removed).write_text("password=x\n")
    (tmp_path / "authority" / removed).chmod(0o600)
    module.hand_out(tmp_path, "machines")
    assert (tmp_path / "prepare" / removed).exists()

    (tmp_path / "authority" / removed).unlink()
    module.hand_out(tmp_path, "machines")

    assert not (tmp_path / "prepare" / removed).exists()


def test_nobody_but_jobs_and_broker_reaches_flink() -> None:
    """It has no login, and its containers have every job's password."""
    networks = {name: service["networks"] for name, service in SERVICES.items()}
    flink = {name for name in networks if name.startswith(("jobmanager", "taskmanager", "sql-gateway", "submit-"))}
    assert {name for name in networks if {*networks[name]} & {net for job in flink for net in networks[job]}} == flink | {"kafka"}
