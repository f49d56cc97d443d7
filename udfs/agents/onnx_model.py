"""ONNX models by alias: decoded, checked against their digest, loaded once, asked row by row."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contracts.errors import ModelRefused
from contracts.model import ModelAlias
from contracts.proposal import ModelUsed
from udfs.native import on_plain_thread


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer; `used` is what a proposal records of it."""

    used: ModelUsed
    inputs: tuple[str, ...]
    output: str
    session: Any
    input_name: str

    def confidence(self, features: Mapping[str, object]) -> float:
        """The model's confidence for one situation, 0 unsure .. 1 certain.

        A missing feature (null) is passed as NaN. Raises ModelRefused when the answer is no number
        within 0..1: what a model cannot say is no proposal.
        """
        import numpy as np

        values = [math.nan if (value := features.get(name)) is None else value for name in self.inputs]
        try:
            row = np.array([values], dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ModelRefused(f"model {self.used.name!r}: expected numbers: {error}") from None
        if row.shape != (1, len(self.inputs)):
            raise ModelRefused(f"model {self.used.name!r}: expected numbers, came a list")
        answer = float(self.session.run([self.output], {self.input_name: row})[0].reshape(-1)[0])
        if not -1e-6 <= answer <= 1 + 1e-6:
            raise ModelRefused(
                f"model {self.used.name!r} version {self.used.version}: expected a confidence"
                f" within 0..1, came {answer!r}"
            )
        return min(1.0, max(0.0, answer))


def load_model(alias: ModelAlias) -> LoadedModel:
    """The model behind an alias event. Safe on an operator's thread (see udfs/native.py).

    Raises ModelRefused when the bytes do not match their SHA-256, onnxruntime cannot load them, or
    inputs and output are not as the event says, or the model would read a file. Never unpickles anything.
    """
    return on_plain_thread(lambda: _load(alias))


def _load(alias: ModelAlias) -> LoadedModel:
    import numpy as np
    import onnxruntime

    place = f"model {alias.alias!r} version {alias.version}"
    try:
        artefact = base64.b64decode(alias.artefact_base64, validate=True)
    except ValueError as error:
        raise ModelRefused(f"{place}: artefact is not base64: {error}") from None
    digest = hashlib.sha256(artefact).hexdigest()
    if digest != alias.sha256:
        raise ModelRefused(f"{place}: expected SHA-256 {alias.sha256}, the artefact has {digest}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A tensor may name a file instead of holding its numbers: one below the working directory, secrets too. There is none here.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", f"/nowhere-{digest}")
    try:
        session = onnxruntime.InferenceSession(artefact, options, ["CPUExecutionProvider"])
        (only_input,) = session.get_inputs()
        if alias.output not in [output.name for output in session.get_outputs()]:
            raise ModelRefused(f"{place}: no output {alias.output!r}")
        probe = np.zeros((1, len(alias.inputs)), dtype=np.float32)
        answer = session.run([alias.output], {only_input.name: probe})[0]
        if np.asarray(answer).size != 1:
            raise ModelRefused(f"{place}: expected one number a row, came shape {answer.shape}")
    except ModelRefused:
        raise
    except Exception as error:
        raise ModelRefused(f"{place}: does not load or run: {str(error)[:500]}") from None
    used = ModelUsed(name=alias.alias, version=alias.version, sha256=digest)
    return LoadedModel(used, alias.inputs, alias.output, session, only_input.name)
