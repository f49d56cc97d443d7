"""Models as files and as events: conf/<domain>/models/<alias>.onnx beside <alias>.json."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import orjson
from pydantic import ValidationError

from contracts.envelope import derive_id
from contracts.errors import ModelRefused
from contracts.model import ModelAlias
from jobs.settings import ROOT
from ops import versions
from udfs.agents.onnx_model import load_model


def model_folder(domain: str) -> Path:
    return ROOT / "conf" / domain / "models"


def read_model(card: Path) -> ModelAlias:
    """The model a card (`<alias>.json`) describes, loaded once to see that it answers.

    Raises ModelRefused naming the file and what is wrong with it.
    """
    artefact = card.with_suffix(".onnx")
    try:
        found = orjson.loads(card.read_bytes())
        content = artefact.read_bytes()
    except (OSError, orjson.JSONDecodeError) as error:
        raise ModelRefused(f"{card}: expected a model card and {artefact.name}: {error}") from None
    if not isinstance(found, dict):
        raise ModelRefused(f"{card}: expected a model card, a JSON object; came {type(found).__name__}")
    found |= {
        "sha256": hashlib.sha256(content).hexdigest(),
        "artefact_base64": base64.b64encode(content).decode(),
    }
    try:
        alias = ModelAlias.model_validate_json(orjson.dumps(found))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise ModelRefused(f"{card}: {first['loc']}: {first['msg']}") from None
    except orjson.JSONEncodeError as error:  # nested too deeply
        raise ModelRefused(f"{card}: expected a model card: {error}") from None
    load_model(alias)
    return alias


def shipped_models(domain: str) -> list[ModelAlias]:
    """Every model of conf/<domain>/models, by file name."""
    return [read_model(card) for card in sorted(model_folder(domain).glob("*.json"))]


def publish(bootstrap_servers: str, domain: str, models: list[ModelAlias], *, now_ms: int) -> None:
    """Write one alias event per model; `propose` answers with the newest from then on."""
    versions.write(
        bootstrap_servers, domain, "models", "model",
        (
            (key := f"{model.alias}/{model.version}", derive_id(f"{key}/{model.sha256}/{now_ms}", "model", domain), model)
            for model in models
        ),
        now_ms=now_ms,
    )  # fmt: skip


def published(bootstrap_servers: str, domain: str) -> Iterator[tuple[int, dict[str, object]]]:
    """(offset, event) of every readable alias event, oldest first."""
    for offset, event in versions.events(bootstrap_servers, domain, "models"):
        if event.get("type") != ModelAlias.event_type:
            continue
        try:
            ModelAlias.model_validate_json(orjson.dumps(event.get("data")))
        except (ValidationError, orjson.JSONEncodeError):
            continue  # `propose` keeps it in dead letters
        yield offset, event
