"""The machine-health model: a conformal p-value of a nonconformity score, as one ONNX graph.

Score (higher is stranger): how near a reading's level shift or jump comes to the largest upset its
machine remembers, s = max(|level_shift| / max(level_peak, 1.8), |jump| / max(jump_peak, 8)).
Conformal p-value: (1 + number of calibration scores >= s) / (1 + number of calibration scores), after
Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, section 2.2 (inductive
form). Confidence is 1 - p; 0 while the machine is warming up. docs/decisions/0007-detector.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FEATURES = ("readings_seen", "level_shift", "level_peak", "jump", "jump_peak")
WARM_READINGS = 200
LEVEL_FLOOR = 1.8
JUMP_FLOOR = 8.0


def nonconformity(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The score of each row of FEATURES."""
    _, level, level_peak, jump, jump_peak = rows.T
    scores: NDArray[np.float32] = np.maximum(
        np.abs(level) / np.maximum(level_peak, np.float32(LEVEL_FLOOR)),
        np.abs(jump) / np.maximum(jump_peak, np.float32(JUMP_FLOOR)),
    )
    return scores


def calibrate(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sorted calibration scores of consecutive readings of one machine, warm-up left out."""
    return np.sort(nonconformity(rows)[WARM_READINGS:])


def build(calibration: NDArray[np.float32]) -> bytes:
    """The ONNX file: `features` float[n, 5] -> `confidence` float[n, 1]. Same scores, same bytes."""

    def constant(name: str, value: Any, kind: Any = np.float32) -> Any:
        return numpy_helper.from_array(np.array(value, dtype=kind), name)

    weights = [
        constant("level_floor", LEVEL_FLOOR),
        constant("jump_floor", JUMP_FLOOR),
        constant("warm", WARM_READINGS),
        constant("one", 1.0),
        constant("size", 1.0 + len(calibration)),
        constant("columns", [1], np.int64),
        constant("calibration", calibration.reshape(1, -1)),
    ]
    node = helper.make_node
    nodes = [
        node("Split", ["features"], list(FEATURES), axis=1, num_outputs=len(FEATURES)),
        node("Abs", ["level_shift"], ["level_size"]),
        node("Max", ["level_peak", "level_floor"], ["level_scale"]),
        node("Div", ["level_size", "level_scale"], ["level_score"]),
        node("Abs", ["jump"], ["jump_size"]),
        node("Max", ["jump_peak", "jump_floor"], ["jump_scale"]),
        node("Div", ["jump_size", "jump_scale"], ["jump_score"]),
        node("Max", ["level_score", "jump_score"], ["score"]),
        node("GreaterOrEqual", ["calibration", "score"], ["is_at_least"]),
        node("Cast", ["is_at_least"], ["at_least"], to=TensorProto.FLOAT),
        node("ReduceSum", ["at_least", "columns"], ["rank"], keepdims=1),
        node("Add", ["rank", "one"], ["rank_with_itself"]),
        node("Div", ["rank_with_itself", "size"], ["conformal"]),
        node("Greater", ["readings_seen", "warm"], ["is_warm"]),
        node("Where", ["is_warm", "conformal", "one"], ["p_value"]),
        node("Sub", ["one", "p_value"], ["confidence"]),
    ]
    graph = helper.make_graph(
        nodes,
        "machine-health",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", len(FEATURES)])],
        [helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["n", 1])],
        weights,
    )
    model = helper.make_model(graph, producer_name="flyball", opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))
