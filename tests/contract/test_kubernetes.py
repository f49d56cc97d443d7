"""deploy/kubernetes/: made from conf/flink.yaml, one application cluster a job, state and secrets where they belong.

Not run on a cluster; deploy/kubernetes/README.md says what was checked otherwise.
"""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pyflink
import pytest
from ruamel.yaml import YAML

from jobs.settings import load_settings
from ops.flink_jobs import jobs_of
from ops.home import CHECKOUT

FOLDER = CHECKOUT / "deploy" / "kubernetes"
FLINK_YAML: dict[str, Any] = YAML(typ="safe").load((CHECKOUT / "conf" / "flink.yaml").read_text())
DOCKERFILE = (CHECKOUT / "docker" / "Dockerfile").read_text()
DOMAINS = sorted(path.parent.name for path in (CHECKOUT / "conf").glob("*/domain.yaml"))


@pytest.fixture(scope="module")
def made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manifests", FOLDER / "manifests.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=DOMAINS)
def domain(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def deployments(made: ModuleType, domain: str) -> dict[str, dict[str, Any]]:
    """By job."""
    found = {each["metadata"]["name"]: each for each in made.manifests(domain) if each["kind"] == "FlinkDeployment"}
    return {name.removeprefix(f"{domain}-"): each for name, each in found.items()}


def test_the_file_that_is_shipped_is_what_the_script_makes(made: ModuleType) -> None:
    shipped = (FOLDER / "machines.yaml").read_text()

    assert list(YAML(typ="safe").load_all(shipped)) == made.manifests("machines")


def test_every_job_of_a_domain_has_a_deployment_of_its_own(deployments: dict[str, Any], domain: str) -> None:
    assert set(deployments) == set(jobs_of(domain))
    for job, each in deployments.items():
        # What the operator accepts as a name.
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,43}[a-z0-9])?", each["metadata"]["name"])
        arguments = each["spec"]["job"]["args"]
        script = arguments[arguments.index("-py") + 1]
        assert script == f"/opt/flyball/jobs/{job}.py" and "WORKDIR /opt/flyball" in DOCKERFILE
        assert (CHECKOUT / "jobs" / f"{job}.py").is_file()
        assert arguments.index("-py") < arguments.index("--domain"), "Flink's own options come first"


def test_the_settings_are_those_of_the_embedded_cluster(
    made: ModuleType, deployments: dict[str, Any]
) -> None:
    kept = {key: value for key, value in made.flat(FLINK_YAML) if not key.startswith(made.REPLACED)}

    assert kept["python.execution-mode"] == "thread"
    for each in deployments.values():
        configuration = each["spec"]["flinkConfiguration"]
        assert kept.items() <= configuration.items()
        assert all(isinstance(value, str) for value in configuration.values())


def test_state_is_outside_of_the_pods_and_survives_them(deployments: dict[str, Any], domain: str) -> None:
    for job, each in deployments.items():
        configuration, spec = each["spec"]["flinkConfiguration"], each["spec"]
        assert configuration["high-availability.type"] == "kubernetes"
        assert configuration["high-availability.storageDir"].startswith("s3://")
        # The job's own setting (jobs/environment.py) wins, so both must say the same.
        env = {item["name"]: item.get("value") for item in spec["podTemplate"]["spec"]["containers"][0]["env"]}
        assert configuration["execution.checkpointing.dir"] == f"{env['FLYBALL_CHECKPOINTS']}/{domain}.{job}"
        assert configuration["execution.checkpointing.savepoint-dir"].startswith("s3://")
        assert spec["job"]["upgradeMode"] == "savepoint"
    assert "flink-s3-fs-presto" in DOCKERFILE


def test_a_pod_holds_no_password_but_its_own_and_that_as_a_file(deployments: dict[str, Any], domain: str) -> None:
    for job, each in deployments.items():
        pod = each["spec"]["podTemplate"]["spec"]
        (volume,) = pod["volumes"]
        secrets = [s["secret"]["name"] for s in volume["projected"]["sources"] if "secret" in s]
        assert secrets == [f"{domain}-{job}-broker"]
        (container,) = pod["containers"]
        (mount,) = container["volumeMounts"]
        env = {item["name"]: item for item in container["env"]}
        assert env["FLYBALL_SECRETS"]["value"] == mount["mountPath"] and mount["readOnly"]
        assert all("value" in item or "secretKeyRef" in item["valueFrom"] for item in env.values())
        assert ("OPENAI_API_KEY" in env) == (job == "reason")


def test_pods_run_as_the_user_of_the_image_without_further_rights(deployments: dict[str, Any]) -> None:
    (user,) = re.findall(r"useradd --uid (\d+)", DOCKERFILE)
    for each in deployments.values():
        pod = each["spec"]["podTemplate"]["spec"]
        assert pod["securityContext"]["runAsUser"] == int(user) and pod["securityContext"]["runAsNonRoot"]
        assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        for part in ("jobManager", "taskManager"):
            (container,) = each["spec"][part]["podTemplate"]["spec"]["containers"]
            assert container["name"] == "flink-main-container"
            assert {"startupProbe", "livenessProbe"} <= set(container)


def test_only_its_own_pods_and_the_operator_reach_a_job(made: ModuleType, deployments: dict[str, Any], domain: str) -> None:
    found = {each["metadata"]["name"]: each["spec"] for each in made.manifests(domain, operator_namespace="ops") if each["kind"] == "NetworkPolicy"}

    assert found.keys() == {each["metadata"]["name"] for each in deployments.values()}
    for name, spec in found.items():
        own, operator = spec["ingress"]
        assert spec["podSelector"] == own["from"][0]["podSelector"] == {"matchLabels": {"app": name}}
        assert operator["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ops"}}}]
        assert operator["ports"] == [{"protocol": "TCP", "port": 8081}]


def test_parallelism_is_the_same_for_the_operator_and_the_job(deployments: dict[str, Any], domain: str) -> None:
    for job, each in deployments.items():
        asked = each["spec"]["job"]
        told = int(asked["args"][asked["args"].index("--parallelism") + 1])
        alone = load_settings(domain).context_parallelism if job == "context" else None
        assert asked["parallelism"] == (alone or told)
        assert each["spec"]["flinkConfiguration"]["taskmanager.numberOfTaskSlots"] == "1"


def test_the_jar_and_the_version_are_those_of_the_installed_flink(deployments: dict[str, Any]) -> None:
    (jar,) = (Path(pyflink.__file__).parent / "opt").glob("flink-python-*.jar")
    major, minor, _ = jar.stem.removeprefix("flink-python-").split(".")
    for each in deployments.values():
        assert each["spec"]["job"]["jarURI"] == f"local:///opt/flink/opt/{jar.name}"
        assert each["spec"]["flinkVersion"] == f"v{major}_{minor}"
        assert not each["spec"]["image"].endswith(":latest")


def the_job(made: ModuleType, domain: str, **changed: Any) -> dict[str, Any]:
    (job,) = (each for each in made.manifests(domain, **changed) if each["kind"] == "Job")
    found: dict[str, Any] = job
    return found


@pytest.mark.parametrize("changed", [{"image": "registry.example/flyball:0.2.0"}, {"kafka": "other:9093"}, {"storage": "gs://other"}])
def test_prepare_is_another_job_when_its_template_is_another(made: ModuleType, changed: dict[str, str]) -> None:
    before, after = the_job(made, "machines"), the_job(made, "machines", **changed)

    assert before["spec"]["template"] != after["spec"]["template"], "which kubectl apply refuses to change"
    assert before["metadata"]["name"] != after["metadata"]["name"]


def test_prepare_is_the_same_job_when_its_template_is_the_same(made: ModuleType) -> None:
    assert the_job(made, "machines", parallelism=4, operator_namespace="ops") == the_job(made, "machines")


def test_prepare_has_a_name_that_may_be_and_goes_when_it_is_done(made: ModuleType, domain: str) -> None:
    job = the_job(made, domain)

    assert re.fullmatch(rf"{domain}-prepare-[0-9a-f]{{10}}", job["metadata"]["name"]) and len(job["metadata"]["name"]) <= 63
    assert job["spec"]["ttlSecondsAfterFinished"] > 0


def test_prepare_makes_no_keys_that_would_go_with_its_pod(made: ModuleType, domain: str) -> None:
    (container,) = the_job(made, domain)["spec"]["template"]["spec"]["containers"]

    assert container["command"][1:] == ["docker/prepare.py", domain]


def test_the_script_writes_yaml_without_anchors(made: ModuleType) -> None:
    out = io.StringIO()
    YAML().dump_all(made.manifests("machines"), out)

    assert not re.search(r"[:-] [&*]id\d", out.getvalue())
