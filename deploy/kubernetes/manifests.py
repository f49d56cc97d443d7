"""A domain's jobs for the Flink Kubernetes operator, made from conf/flink.yaml and the domain's settings.

`python deploy/kubernetes/manifests.py machines > deploy/kubernetes/machines.yaml`, then read README.md beside it.
An application cluster a job: each is upgraded alone, and its TaskManagers start with the new image, which thread
mode needs for new code to take effect (docs/decisions/0002). A slot a TaskManager, so that no subtask waits for
another's Python.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML

from jobs.settings import ROOT, Settings, load_settings
from ops.cluster import ADD_OPENS
from ops.flink_jobs import jobs_of

IMAGE = "registry.example/flyball:0.1.0"
STORAGE = "s3://flyball"
KAFKA = "kafka-bootstrap:9093"
SECRETS = "/etc/flyball/secrets"
OPERATOR = "flink-operator"
KEPT_FOR_S = 3600  # what a Job left that has ended: its pod and what that said
REST_PORT = 8081
PYTHON = "/usr/local/bin/python"
CHECKOUT_IN_IMAGE = "/opt/flyball"
USER_ID = 9999  # docker/Dockerfile
# Of conf/flink.yaml, what the operator computes from a pod's resources, or what one slot a TaskManager makes idle.
REPLACED = ("taskmanager.numberOfTaskSlots", "taskmanager.load-balance.mode", "taskmanager.cpu.cores",
            "taskmanager.memory.", "jobmanager.memory.")  # fmt: skip
# MiB. Python and its libraries live outside of the JVM, in the TaskManager's task off-heap memory (thread mode) and,
# while it plans, in the JobManager's.
JOBMANAGER_MIB, CLIENT_MIB = 2048, 640
TASKMANAGER_MIB, PYTHON_MIB = 3072, 1024
# `govern` keeps its state in RocksDB, the others on the heap.
MANAGED_MIB = {"govern": 512}


def flat(settings: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as texts, as every version of the operator takes them."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", str(value).lower() if isinstance(value, bool) else str(value)


def configuration(domain: str, job: str, storage: str) -> dict[str, str]:
    """What flinkConfiguration says: conf/flink.yaml, and what a cluster adds to it."""
    shipped = YAML(typ="safe").load((ROOT / "conf" / "flink.yaml").read_text())
    return {key: value for key, value in flat(shipped) if not key.startswith(REPLACED)} | {
        "taskmanager.numberOfTaskSlots": "1",
        "taskmanager.memory.managed.size": f"{MANAGED_MIB.get(job, 64)}mb",
        "taskmanager.memory.task.off-heap.size": f"{PYTHON_MIB}mb",
        "taskmanager.memory.network.min": "96mb",
        "taskmanager.memory.network.max": "96mb",
        "taskmanager.memory.segment-size": "16kb",
        "jobmanager.memory.off-heap.size": f"{CLIENT_MIB}mb",
        "env.java.opts.all": " ".join(ADD_OPENS),
        "env.java.opts.taskmanager": "-XX:-DontCompileHugeMethods",  # ops/cluster.py
        "python.executable": PYTHON,
        "python.client.executable": PYTHON,
        "high-availability.type": "kubernetes",
        "high-availability.storageDir": f"{storage}/ha",
        "execution.checkpointing.dir": f"{storage}/checkpoints/{domain}.{job}",
        "execution.checkpointing.savepoint-dir": f"{storage}/savepoints/{domain}.{job}",
        # The image is Flink's distribution on Python's image, without the entry script of Flink's own.
        "kubernetes.entry.path": "/usr/bin/env",
        "kubernetes.operator.cluster.health-check.enabled": "true",
        "kubernetes.operator.job.restart.failed": "true",
    }


def pod(domain: str, roles: list[str], storage: str, kafka: str, container: dict[str, Any]) -> dict[str, Any]:
    """A pod's template. Of the broker's passwords it gets those of `roles`, as files."""
    env = [
        {"name": "FLYBALL_BOOTSTRAP_SERVERS", "value": kafka},
        {"name": "FLYBALL_CHECKPOINTS", "value": f"{storage}/checkpoints"},
        {"name": "FLYBALL_SECRETS", "value": SECRETS},
    ]
    if roles == ["reason"]:
        env.append({"name": "OPENAI_BASE_URL", "value": "https://models.example/v1"})
        key = {"name": f"{domain}-reason-models", "key": "api-key"}
        env.append({"name": "OPENAI_API_KEY", "valueFrom": {"secretKeyRef": key}})
    return {
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER_ID, "runAsGroup": USER_ID, "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            container | {
                "env": env,
                "volumeMounts": [{"name": "secrets", "mountPath": SECRETS, "readOnly": True}],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
        "volumes": [
            {"name": "secrets", "projected": {
                "defaultMode": 0o440, "sources": [
                    {"configMap": {"name": "broker-ca"}},
                    *({"secret": {"name": f"{domain}-{role}-broker"}} for role in roles),
                ],
            }}
        ],
    }  # fmt: skip


def _probed(port: int, path: str | None = None) -> dict[str, Any]:
    """The main container: up within five minutes, restarted after a minute of silence. Flink's heartbeats see more."""

    def probe(**often: int) -> dict[str, Any]:
        asked = {"tcpSocket": {"port": port}} if path is None else {"httpGet": {"path": path, "port": port}}
        return {**asked, **often}

    return {
        "name": "flink-main-container",
        "startupProbe": probe(periodSeconds=5, failureThreshold=60),
        "livenessProbe": probe(periodSeconds=10, timeoutSeconds=5, failureThreshold=6),
    }


def deployment(settings: Settings, job: str, *, image: str, storage: str, kafka: str) -> dict[str, Any]:
    """One job as an application cluster."""
    domain = settings.domain
    parallelism = (settings.context_parallelism if job == "context" else None) or settings.parallelism
    return {
        "apiVersion": "flink.apache.org/v1beta1",
        "kind": "FlinkDeployment",
        "metadata": {"name": f"{domain}-{job}", "labels": {"app.kubernetes.io/part-of": "flyball", "domain": domain}},
        "spec": {
            "image": image,
            "flinkVersion": "v2_2",
            "serviceAccount": "flink",
            "flinkConfiguration": configuration(domain, job, storage),
            "podTemplate": {"spec": pod(domain, [job], storage, kafka, {"name": "flink-main-container"})},
            "jobManager": {
                "resource": {"memory": f"{JOBMANAGER_MIB}m", "cpu": 1},
                "replicas": 1,
                "podTemplate": {"spec": {"containers": [_probed(REST_PORT, "/config")]}},
            },
            "taskManager": {
                "resource": {"memory": f"{TASKMANAGER_MIB}m", "cpu": 1},
                "podTemplate": {"spec": {"containers": [_probed(6122)]}},
            },
            "job": {
                "jarURI": "local:///opt/flink/opt/flink-python-2.2.1.jar",
                "entryClass": "org.apache.flink.client.python.PythonDriver",
                "args": [
                    "-pyclientexec", PYTHON, "-py", f"{CHECKOUT_IN_IMAGE}/jobs/{job}.py", "--domain", domain,
                    "--parallelism", str(settings.parallelism),
                ],
                "parallelism": parallelism,
                "upgradeMode": "savepoint",
                "state": "running",
            },
        },
    }  # fmt: skip


def only_their_own(domain: str, job: str, operator: str) -> dict[str, Any]:
    """Who may connect to a job's pods: each other, and the operator's namespace to the REST port.

    Whoever reaches REST or RPC of a Flink cluster runs code as its job. The labels are those that Flink gives its pods.
    """
    cluster = {"matchLabels": {"app": f"{domain}-{job}"}}
    namespace = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"{domain}-{job}", "labels": {"app.kubernetes.io/part-of": "flyball", "domain": domain}},
        "spec": {
            "podSelector": cluster,
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": dict(cluster["matchLabels"])}}]},
                {"from": [namespace], "ports": [{"protocol": "TCP", "port": REST_PORT}]},
            ],
        },
    }


def prepare(settings: Settings, *, image: str, storage: str, kafka: str) -> dict[str, Any]:
    """Before the jobs, once for each image and its arguments: topics, policies, people, models.

    A Job's template cannot be changed, so another one is another Job, by its name.
    """
    domain = settings.domain
    container = {
        "name": "prepare", "image": image, "workingDir": CHECKOUT_IN_IMAGE,
        "command": [PYTHON, "docker/prepare.py", domain],
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
    }  # fmt: skip
    template = pod(domain, ["admin", "people", "reader"], storage, kafka, container) | {"restartPolicy": "Never"}
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{domain}-prepare-{digest}", "labels": {"app.kubernetes.io/part-of": "flyball", "domain": domain},
        },
        "spec": {"backoffLimit": 4, "ttlSecondsAfterFinished": KEPT_FOR_S, "template": {"spec": template}},
    }  # fmt: skip


def manifests(
    domain: str, *, image: str = IMAGE, storage: str = STORAGE, kafka: str = KAFKA, parallelism: int = 2,
    operator_namespace: str = OPERATOR,
) -> list[dict[str, Any]]:  # fmt: skip
    """Everything of a domain that runs on Flink, what has to be before it first."""
    settings = load_settings(domain, parallelism=parallelism)
    common = {"image": image, "storage": storage, "kafka": kafka}
    jobs = jobs_of(domain)
    return [
        prepare(settings, **common),
        *(only_their_own(domain, job, operator_namespace) for job in jobs),
        *(deployment(settings, job, **common) for job in jobs),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a domain's manifests for the Flink Kubernetes operator.")
    parser.add_argument("domain")
    parser.add_argument("--image", default=IMAGE)
    parser.add_argument("--storage", default=STORAGE, help="where checkpoints, savepoints and metadata go: s3://, gs://")
    parser.add_argument("--kafka", default=KAFKA, help="bootstrap servers")
    parser.add_argument("--parallelism", type=int, default=2)
    parser.add_argument("--operator-namespace", default=OPERATOR, help="where the Flink Kubernetes operator runs")
    asked = vars(parser.parse_args())
    yaml = YAML()
    yaml.width = 100_000
    print(f"# Made by `python deploy/kubernetes/manifests.py {asked['domain']}`; a test holds it. See README.md.")
    yaml.dump_all(manifests(asked.pop("domain"), **asked), sys.stdout)


if __name__ == "__main__":
    main()
