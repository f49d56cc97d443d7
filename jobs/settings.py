"""Settings of a job: defaults, then conf/<domain>/domain.yaml, then FLYBALL_* in the environment."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contracts.errors import SetupFailed
from udfs.yaml_file import read_yaml

ROOT = Path(__file__).resolve().parent.parent
# A link to the checkpoint that a kept plan goes on from, beside the checkpoints of its job.
LATEST = "latest"


class Settings(BaseModel):
    """What a job must know. Times say their unit; durations of event time say so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: str
    description: str = ""
    bootstrap_servers: str = "localhost:9092"
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    checkpoint_interval_ms: int = Field(default=250, ge=50, description="govern, exactly once")
    recovery_interval_ms: int = Field(default=5000, ge=50, description="all other checkpoints")
    parallelism: int = Field(default=1, ge=1, le=4, description="subtasks of each operator")
    context_parallelism: int | None = Field(
        default=None, ge=1, le=4,
        description="of job context, where it differs: 1 where views go by another key than the subject",
    )
    max_ahead_s: int = Field(default=3600, ge=0, description="how far a fact may lead wall time")
    watermark_delay_s: int = Field(default=600, ge=0, description="lateness windows wait for")
    max_hops: int = Field(default=6, ge=1, description="how often a chain may go round the loop")
    govern_reads_situations: bool = Field(
        default=False, description="so that policies with current_by see changes nobody proposed on"
    )
    models_url: str = Field(
        default="", description="base URL of the OpenAI-compatible server; empty: OPENAI_BASE_URL where `reason` runs"
    )
    model: str = Field(default="", max_length=200, description="asked in place of those that agents name; empty: those")
    reason_in_flight: int = Field(default=500, ge=1, le=10_000, description="calls of models at once, all agents")
    remember_s: int = Field(
        default=90 * 86_400, ge=60, description="event time for which proposal ids are remembered"
    )
    seal_every_s: float = Field(
        default=60, gt=0, le=86_400, description="wall time between signed audit heads"
    )
    command_attempts: int = Field(
        default=5, ge=1, le=20, description="how often an actuator tries what fails for a passing reason"
    )
    command_retry_s: float = Field(
        default=1, gt=0, le=3600, description="until the second attempt; doubles with each, up to an hour"
    )
    agents: str = Field(default="", description="agents file; default conf/<domain>/agents.yaml")
    signed_facts: Literal["accepted", "required"] = Field(
        default="accepted", description="whether facts must be signed by their producers; a bad signature never passes"
    )
    signature_max_age_s: int = Field(
        default=86_400, ge=1, le=30 * 86_400, description="wall time from a fact's signature to its arrival"
    )
    producers: str = Field(default="", description="producers' keys; default conf/<domain>/producers.yaml")
    largest_window_s: int = Field(
        default=3600, ge=0, description="event time; a played input ends with a tick this far on"
    )
    default_input: str = Field(default="", description="file below data/, or empty: generated")
    default_count: int = Field(default=20_000, ge=1, description="facts of a generated input")
    default_rate: float | None = Field(default=None, gt=0, description="facts/s; none: unlimited")

    @property
    def agents_file(self) -> Path:
        return Path(self.agents) if self.agents else self.conf_dir / "agents.yaml"

    @property
    def producers_file(self) -> Path:
        return Path(self.producers) if self.producers else self.conf_dir / "producers.yaml"

    @property
    def sql_dir(self) -> Path:
        return ROOT / "sql" / self.domain

    @property
    def conf_dir(self) -> Path:
        return ROOT / "conf" / self.domain


def load_settings(domain: str, **overrides: object) -> Settings:
    """Settings of `domain`. Raises SetupFailed naming file or variable, expected and found."""
    path = ROOT / "conf" / domain / "domain.yaml"
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", domain) or not path.exists():
        known = sorted(p.parent.name for p in (ROOT / "conf").glob("*/domain.yaml"))
        raise SetupFailed(
            f"no domain {domain[:64]!r}; there are: {', '.join(known)}. './flyball new {domain[:40]}'"
            " lays one out"
        )
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise SetupFailed(f"{path}: expected a mapping of settings, came {type(found).__name__}")
    for name in Settings.model_fields:
        if (text := os.environ.get(f"FLYBALL_{name.upper()}")) is not None and name != "domain":
            found[name] = text
    found |= overrides
    if "@" in str(found.get("models_url", "")).partition("://")[2].partition("/")[0]:  # whatever is told of settings would tell it, and the job graph holds it
        raise SetupFailed(
            f"{path} (or FLYBALL_MODELS_URL): models_url: expected no user or password in it; the key is OPENAI_API_KEY in the environment"
        )
    try:
        return Settings.model_validate({**found, "domain": domain})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, came {str(e['input'])[:100]!r}" for e in error.errors()
        )
        raise SetupFailed(f"{path} (or FLYBALL_* in the environment): {problems}") from None


def settings_from_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """For a job submitted by hand: `flink run -py jobs/<job>.py -- --domain machines`."""
    parser = argparse.ArgumentParser(description="Submit one Flyball job for one domain.")
    parser.add_argument("--domain", required=True)
    parser.add_argument("--bootstrap-servers", help="Kafka (FLYBALL_BOOTSTRAP_SERVERS)")
    parser.add_argument("--delivery", choices=["exactly_once", "at_least_once"])
    parser.add_argument("--parallelism", type=int)
    given = [a for a in arguments if a != "--"] if arguments is not None else None
    asked = vars(parser.parse_args(given))
    domain = asked.pop("domain")
    return load_settings(domain, **{k: v for k, v in asked.items() if v is not None})
