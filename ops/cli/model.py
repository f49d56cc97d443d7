"""model: models as versioned events; model-server: a scripted one for language models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.errors import SetupFailed
from ops.cli.options import AsJson, Domain
from ops.cli.terminal import bootstrap, command, err, now_ms, out, print_columns, print_json

if TYPE_CHECKING:
    from ops.model_server import ModelServer

app = typer.Typer()
group = typer.Typer(help="Models as versioned events.", no_args_is_help=True)
app.add_typer(group, name="model")


@command(group)
def train(domain: Domain) -> None:
    """Train on shipped data and write the ONNX artefact and its card to conf/DOMAIN/models."""
    from ops.models import model_folder
    from ops.world import load_world

    with err.status(f"training {domain}"):
        told = load_world(domain).train(model_folder(domain))
    print_json(dict(told))


@command(group)
def publish(
    domain: Domain,
    cards: Annotated[list[Path] | None, typer.Argument(help="model cards (.json)")] = None,
    as_json: AsJson = False,
) -> None:
    """Publish alias events for models of conf/DOMAIN/models; propose answers with them at once."""
    from ops import models

    chosen = [models.read_model(card) for card in cards] if cards else models.shipped_models(domain)
    models.publish(bootstrap(), domain, chosen, now_ms=now_ms())
    if as_json:
        print_json({"published": [{"alias": model.alias, "version": model.version, "sha256": model.sha256} for model in chosen]})
        return
    for model in chosen:
        out.print(f"published {model.alias}/{model.version} sha256 {model.sha256}")


@command(group, "list")
def list_aliases(domain: Domain, as_json: AsJson = False) -> None:
    """Every alias event, oldest first; the last of an alias answers."""
    from ops import models

    rows: list[dict[str, Any]] = []
    for offset, event in models.published(bootstrap(), domain):
        data: Any = event["data"]
        rows.append(
            {"alias": data["alias"], "version": data["version"], "status": data["status"],
             "sha256": data["sha256"], "published_at": event.get("time"), "offset": offset,
             "trained_on": data["trained_on"]}
        )  # fmt: skip
    if as_json:
        print_json(rows)
    else:
        print_columns(("alias", "version", "status", "sha256", "published_at"), rows)


@command(app, "model-server")
def model_server(
    port: Annotated[int, typer.Option(help="0 chooses a free one")] = 8089,
    latency_ms: Annotated[float, typer.Option(help="from a request to its answer")] = 1000,
    jitter_ms: Annotated[float, typer.Option(help="added or taken off, evenly")] = 0,
    error_rate: Annotated[float, typer.Option(help="share answered 500, 502 or 503")] = 0,
    malformed_rate: Annotated[float, typer.Option(help="share of replies that do not fit")] = 0,
    rate_limit_rate: Annotated[float, typer.Option(help="share answered 429, with Retry-After")] = 0,
    retry_after_s: Annotated[float, typer.Option(help="what a 429 says")] = 1,
    hang_rate: Annotated[float, typer.Option(help="share never answered")] = 0,
    seed: Annotated[int, typer.Option(help="of the dice for all of these")] = 1,
    rules: Annotated[list[Path] | None, typer.Option(help="scripted replies, e.g. conf/DOMAIN/model_rules.yaml; may be repeated")] = None,
    log: Annotated[Path | None, typer.Option(help="append each request and its reply here, as JSONL")] = None,
    as_json: AsJson = False,
) -> None:
    """An OpenAI-compatible server with scripted replies, for tests and the demo. Ends with Ctrl-C."""
    from pydantic import ValidationError

    from ops.model_rules import load_rules
    from ops.model_server import Behaviour, serve

    try:
        behaviour = Behaviour(
            latency_ms=latency_ms, jitter_ms=jitter_ms, error_rate=error_rate, malformed_rate=malformed_rate,
            rate_limit_rate=rate_limit_rate, retry_after_s=retry_after_s, hang_rate=hang_rate, seed=seed,
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SetupFailed(f"--{'-'.join(map(str, first['loc'])).replace('_', '-') or 'rates'}: {first['msg']}") from None

    def ready(server: ModelServer) -> None:
        if as_json:
            sys.stdout.write(json.dumps({"base_url": server.base_url}) + "\n")
            sys.stdout.flush()
        else:
            out.print(f"listening; elsewhere: export OPENAI_BASE_URL={server.base_url} OPENAI_API_KEY=none", soft_wrap=True)

    stats = serve(behaviour, load_rules(rules or []), port=port, log=log, ready=ready)
    if as_json:
        print_json(stats)
    else:
        out.print(f"{stats['requests']} requests, {stats['cancelled']} cancelled, by status {stats['by_status']}")
