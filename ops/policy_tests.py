"""`policy test`: the domain's policy files against its given/expect table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.domain import load_domain
from contracts.errors import BadInput, SetupFailed
from jobs.settings import load_settings
from ops import policies
from udfs.policy import cases
from udfs.policy.policy_set import PolicySet
from udfs.yaml_file import read_yaml


@dataclass(frozen=True)
class Result:
    """One case, and what is wrong with it (None: nothing)."""

    case: str
    problem: str | None


def run(domain: str, file: Path | None = None) -> list[Result]:
    """Every case of the table under the files of conf/<domain>/policies, as `govern` would decide.

    Raises SetupFailed when the table is none, PolicyRefused when a policy is refused.
    """
    settings, contract = load_settings(domain), load_domain(domain)
    path = file or settings.conf_dir / "policies_test.yaml"
    table = read_yaml(path)
    if not isinstance(table, dict) or not isinstance(table.get("cases"), list) or not table["cases"]:
        raise SetupFailed(f"{path}: expected 'cases' (a list of at least one), perhaps 'defaults' and 'people', came {table!r:.200}")
    checked = policies.check_files(domain, policies.policy_files(domain))
    defaults = _mapping(table, "defaults", str(path))
    people_of_all = _people(table, str(path))
    results = []
    for number, case in enumerate(table["cases"]):
        if not isinstance(case, dict) or not {"case", "given", "expect"} <= set(case):
            raise SetupFailed(f"{path}: case {number}: expected case, given and expect, came {case!r:.200}")
        for name in ("given", "expect"):
            if not isinstance(rows := case[name], list) or not all(isinstance(row, dict) for row in rows):
                raise SetupFailed(f"{path}: case {case['case']!r}: expected '{name}' to be a list of mappings, came {rows!r:.200}")
        people = _people(case, f"{path}: case {case['case']!r}") or people_of_all
        try:
            in_force = PolicySet.compile(checked, people=cases.people_of(people))
            played = cases.play(contract, in_force, case, defaults, max_hops=settings.max_hops)
            problem = _problem(played, case["expect"])
        except KeyError as missing:
            problem = f"not a case: expected {missing} in a row, and there is none"
        except (BadInput, ValueError, TypeError, IndexError) as error:
            problem = f"not a case: {type(error).__name__}: {error}"
        results.append(Result(str(case["case"]), problem))
    return results


def _mapping(of: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    found = {} if of.get(name) is None else of[name]
    if not isinstance(found, dict):
        raise SetupFailed(f"{where}: expected '{name}' to be a mapping, came {found!r:.200}")
    return found


def _people(of: dict[str, Any], where: str) -> dict[str, Any]:
    people = _mapping(of, "people", where)
    return {name: _mapping(people, name, f"{where}: people") for name in people}


def _problem(played: cases.Played, expect: list[dict[str, Any]]) -> str | None:
    decided = played.decided
    if len(decided) != len(expect):
        return f"expected {len(decided)} rows in expect, one a decision or note, came {len(expect)}"
    for ordinal, (got, wanted) in enumerate(zip(decided, expect, strict=True)):
        if (problem := cases.mismatch(got, wanted, played.proposals)) is not None:
            return f"row {ordinal}: {problem}"
    return None
