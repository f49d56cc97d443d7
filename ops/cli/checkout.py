"""new, sbom, bench, torture, test, help: this checkout itself, what it consists of and how it holds."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ops.cli.options import AsJson
from ops.cli.terminal import command, err, out, print_json
from ops.home import CHECKOUT, Home

app = typer.Typer()


@command(app)
def new(domain: Annotated[str, typer.Argument(help="a name like 'deliveries'")], as_json: AsJson = False) -> None:
    """Lay out a running skeleton of a new domain: contract, SQL, settings, policies, world."""
    from ops.skeleton import lay_out

    written = lay_out(domain)
    if as_json:
        print_json({"domain": domain, "written": written})
        return
    for path in written:
        out.print(f"wrote {path}")
    out.print(f"now: ./flyball run {domain}")


@command(app)
def sbom(
    output: Annotated[Path | None, typer.Option(help="write it here instead of standard output")] = None,
    audit: Annotated[bool, typer.Option("--audit", help="look the parts up in a database of known vulnerabilities")] = False,
    database: Annotated[str, typer.Option(help="where OSV's API is spoken")] = "https://api.osv.dev",
) -> None:
    """What an installation consists of, as CycloneDX JSON; with --audit, exit code 1 when a part is known to be vulnerable."""
    from datetime import UTC, datetime

    from ops import sbom as bills

    bom = bills.bill(Home.default(), now=datetime.now(UTC))
    known = []
    if audit:
        with err.status("asking the vulnerability database"):
            known = bills.audit(bom, database=database)
    text = bills.as_json(bom)
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text)
        err.print(f"{len(bom.components)} parts written to {output}")
    for one in known:
        err.print(f"[red]{one.id}[/red] {one.purl}", highlight=False, soft_wrap=True)
    if audit:
        err.print(f"{len(known)} known vulnerabilities in {len(bom.components)} parts")
    if known:
        raise typer.Exit(1)


@command(app)
def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="measure only this; may be repeated: context, govern, govern_50, at_least_once, exactly_once,"
            " latency_50_policies, approval_to_command, policy_publish, subjects_1m, reason_100, reason_300,"
            " reason_throughput, reason_idle, reason_killed, alert_to_remedy, soak, overload, hot_key, growth, scaled_out,"
            " first_decision"
        ),
    ] = None,
    runs: Annotated[int, typer.Option(help="runs of each measurement; medians are printed")] = 3,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="how long soak (30), overload (1) and each half of hot_key (1) take")
    ] = None,
    output: Annotated[Path, typer.Option(help="JSON with every run")] = Path("benchmarks/latest.json"),
    as_json: AsJson = False,
) -> None:
    """Measure speed and memory on this machine."""
    from benchmarks.bench import measure

    result = measure(only=only or [], runs=runs, output=output, console=err if as_json else out, minutes=minutes)
    if as_json:
        print_json(result)


@command(app)
def torture(
    short: Annotated[bool, typer.Option("--short", help="the four faults that matter most")] = False,
    fault: Annotated[list[str] | None, typer.Option(help="only this one; may be repeated: see --list")] = None,
    at_least_once: Annotated[
        bool, typer.Option("--at-least-once", help="play them in that delivery, all that need no Kafka transaction")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="tell what faults there are, and play none")] = False,
    as_json: AsJson = False,
) -> None:
    """Break processes, disks, clocks and inputs under load; hold what comes out against what must."""
    from ops.torture import run as torturer

    faults = torturer.chosen(fault or [], is_short=short, at_least_once=at_least_once)
    if list_:
        if as_json:
            print_json([{"fault": each.name, "says": each.says} for each in faults])
            return
        for each in faults:
            out.print(f"{each.name}  [dim]{each.says}[/dim]")
        return
    results = torturer.torture(Home(Home.default().path / "torture"), faults, err)
    if as_json:
        print_json([result.told() for result in results])
    else:
        out.print(torturer.table(results))
    if not all(result.is_green for result in results):
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def test(context: typer.Context) -> None:
    """Ruff, mypy and every test; further arguments go to pytest (then only pytest runs)."""
    tests = ["pytest", *context.args]
    if context.args:
        raise typer.Exit(_started(tests).wait())
    if code := _started(["ruff", "check", "."]).wait():
        raise typer.Exit(code)
    # Beside the quick tests, which take one core. Types that are wrong end the tests: they are told at once.
    types, suite = _started(["mypy"]), _started(tests)
    while suite.poll() is None and not types.poll():
        time.sleep(0.2)
    if types.wait():
        suite.terminate()  # instances that tests started end with pytest
    code = suite.wait()
    raise typer.Exit(types.returncode or code)


def _started(check: list[str]) -> subprocess.Popen[bytes]:
    err.print(f"[dim]$ {' '.join(check)}[/dim]")
    return subprocess.Popen([sys.executable, "-m", *check], cwd=CHECKOUT)


@command(app, "help")
def show_help(context: typer.Context) -> None:
    """This list."""
    assert context.parent is not None
    out.print(context.parent.get_help())
