"""The bill of materials: valid by its own schema, complete by the lock files; and the audit over it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from contracts.errors import SetupFailed
from ops import sbom
from ops.home import Home
from ops.setup import read_jars_lock

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOME = Home.default()


def made() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sbom.as_json(sbom.bill(HOME, now=NOW)))
    return found


def test_the_bill_is_valid_by_the_schema_of_cyclonedx() -> None:
    text = sbom.as_json(sbom.bill(HOME, now=NOW))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"library"', '"furniture"', 1)) is not None


def test_every_package_and_jar_of_the_locks_stands_in_it_with_its_checksums() -> None:
    parts = {part["purl"]: part for part in made()["components"]}
    packages, jars = [package for lock in sbom.LOCKS for package in sbom.read_requirements_lock(lock)], read_jars_lock()
    assert len(parts) == len(packages) + len(jars)
    for package in packages:
        (files,) = parts[f"pkg:pypi/{package.name}@{package.version}"]["externalReferences"]
        assert {one["content"] for one in files["hashes"]} == set(package.sha256)
    for jar in jars:
        group, artifact, version = jar.coordinate.split(":")
        (checksum,) = parts[f"pkg:maven/{group}/{artifact}@{version}"]["hashes"]
        assert checksum == {"alg": "SHA-256", "content": jar.sha256}


def test_licences_are_those_that_installed_packages_name() -> None:
    parts = {part["name"]: part for part in made()["components"]}
    assert "Apache" in json.dumps(parts["apache-flink"]["licenses"])
    assert json.dumps(parts["pydantic"]["licenses"]).count("MIT") == 1


def test_the_same_locks_give_the_same_bill() -> None:
    assert made() == made()


def test_a_lock_that_pins_nothing_is_refused(tmp_path: Path) -> None:
    for line in ("requests>=2\n", "requests==2.0\n", "-e .\n"):
        (tmp_path / "lock").write_text(line)
        with pytest.raises(SetupFailed, match="expected NAME==VERSION with hashes"):
            sbom.read_requirements_lock(tmp_path / "lock")


class _Osv(BaseHTTPRequestHandler):
    """Speaks the one call of OSV's API that is used: lz4-java has two findings, on two pages."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        results: list[dict[str, Any]] = []
        for query in asked:
            if "lz4-java" not in query["package"]["purl"]:
                results.append({})
            elif "page_token" not in query:
                results.append({"vulns": [{"id": "GHSA-1"}], "next_page_token": "2"})
            else:
                results.append({"vulns": [{"id": "GHSA-2"}]})
        body = json.dumps({"results": results}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def osv() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Osv)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_the_database_knows_is_told_and_stands_in_the_bill(osv: str) -> None:
    bom = sbom.bill(HOME, now=NOW)
    found = sbom.audit(bom, database=osv)
    assert [known.id for known in found] == ["GHSA-1", "GHSA-2"]
    text = sbom.as_json(bom)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert {one["id"]: one["affects"] for one in json.loads(text)["vulnerabilities"]} == {
        name: [{"ref": found[0].purl}] for name in ("GHSA-1", "GHSA-2")
    }


def test_an_audit_without_a_database_says_that_nothing_was_audited() -> None:
    with pytest.raises(SetupFailed, match="nothing was audited"):
        sbom.audit(sbom.bill(HOME, now=NOW), database="http://127.0.0.1:1")
