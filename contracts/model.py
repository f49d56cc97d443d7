"""Model: which artefact an alias stands for, as an event."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from contracts.data import Data, Digest, Slug


class ModelAlias(Data):
    """From now on `alias` is answered by this artefact (an ONNX file named by its SHA-256).

    `inputs` are the features in order; the graph takes float32 [n, len(inputs)] and its output
    named `output` gives one float a row: the confidence, 0 unsure .. 1 certain.
    """

    event_type: ClassVar[str] = "flyball.model"

    alias: Slug
    version: int = Field(ge=1)
    status: Literal["active", "retired"] = "active"
    format: Literal["onnx"] = "onnx"
    sha256: Digest
    artefact_base64: str = Field(
        max_length=2_600_000, description="the ONNX file itself, at most 1.9 MB"
    )
    inputs: tuple[Slug, ...] = Field(min_length=1)
    output: str = Field(min_length=1, max_length=64)
    trained_on: str = Field(max_length=500)
    metrics: dict[str, float] = {}
