"""Trains payment-fraud on generated worlds, played closed loop, from late outcomes alone.

Decisions change what becomes known, so every world is played twice: in round 1 nothing is blocked
and a seeded share reviewed, in round 2 the model of round 1 decides. A payment charged back is
fraud, one that was not within the wait is genuine, a blocked one has no label: so that blocked
regions stay known, a seeded share of what would be blocked is reviewed instead and weighs more.
Same code, same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from contracts.payments import ChargedBack
from ops.world import Decided, NewFact
from ops.worlds.payments_features import FEATURES, Features
from ops.worlds.payments_generator import DAY_MS, LabelledPayment, WorldSettings, generate
from ops.worlds.payments_outcomes import CHARGEBACK_DAYS, with_late_outcomes

# As in conf/payments/agents.yaml.
REVIEW_AT = 0.40
SUSPECTED_REVIEW_AT = 0.10
BLOCK_AT = 0.98
EXPLORED_SHARE = 0.25
SEED = 11

SUSPECTED = FEATURES.index("is_terminal_suspected")

Array = NDArray[Any]
Scores = Callable[[Array], Array]

_BASE = WorldSettings()
_BARE = replace(_BASE, has_profile=False, payments_per_day=(0.05, 4.0))
_EPISODES = replace(
    _BARE, amount_family="normal", spread=(0.4, 0.6), takeovers_per_day=0.4,
    compromise_days=(26, 30), compromise_share=1.0, splurge_share=0.0,
)  # fmt: skip
# Of many scales, families of amounts and densities: what is learned must hold in worlds not seen.
WORLDS: tuple[WorldSettings, ...] = (
    _BASE,
    replace(_BASE, accounts=350, terminals=60, days=70, popularity_shape=1.6, compromises_per_day=0.08),
    replace(
        _EPISODES, accounts=500, terminals=500, days=70, spread=(0.35, 0.6),
        typical_amount=(600, 11_000), forbidden_above=19_000, bursts_per_day=0.1, outliers_per_day=0.1, compromises_per_day=0.8,
    ),
    replace(
        _EPISODES, accounts=700, terminals=1200, days=80, typical_amount=(3_000, 60_000),
        forbidden_above=97_000, bursts_per_day=0.0, outliers_per_day=0.0, compromises_per_day=0.5,
    ),
    replace(
        _BARE, accounts=400, terminals=400, payments_per_day=(0.05, 3.0), amount_family="gamma",
        spread=(0.3, 0.8), typical_amount=(200, 3_000), bursts_per_day=0.5, outliers_per_day=0.5,
        takeovers_per_day=0.3, compromises_per_day=0.2, takeover_days=(10, 16),
    ),
    replace(
        _BARE, accounts=250, terminals=100, payments_per_day=(1.0, 10.0), typical_amount=(20_000, 400_000),
        forbidden_above=1_000_000, compromises_per_day=0.08,
    ),
    replace(
        _EPISODES, accounts=600, terminals=700, days=90, typical_amount=(500, 10_000), bursts_per_day=0.6,
        outliers_per_day=0.0, takeovers_per_day=0.35, takeover_factor=(4.0, 6.0), compromises_per_day=0.3,
        forbidden_above=20_500,
    ),
)  # fmt: skip

# Evidence that can only speak for fraud (1) or against it (-1), whatever the world.
DIRECTION = {
    "tempo_4": -1, "tempo_8": -1, "is_new_device": 1, "is_foreign": 1, "account_far_chargebacks": 1,
    "terminal_chargebacks": 1, "terminal_recoveries": -1, "terminal_share": 1, "band_share": 1, "band_judged_share": 1,
    "is_terminal_suspected": 1,
}  # fmt: skip


@dataclass
class Played:
    """What one world showed while it was played, an entry a payment, in log order."""

    payments: list[LabelledPayment] = field(default_factory=list)
    features: list[list[float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    charged_back: set[str] = field(default_factory=set)


def play(
    facts: Iterable[NewFact], scores: Scores, *, review_at: float = REVIEW_AT,
    suspected_review_at: float = SUSPECTED_REVIEW_AT, block_at: float = BLOCK_AT, explored_share: float = 0.0, seed: int = SEED,
) -> Played:  # fmt: skip
    """Play a world against a model, without cluster; what would be blocked is spared by a share."""
    played, state, places = Played(), Features(), dict[str, int]()
    rng = np.random.default_rng(seed)

    def decide_all() -> None:
        """Decide what was not decided yet: scoring in batches is a hundred times faster."""
        fresh = played.features[len(played.actions) :]
        if not fresh:
            return
        answers = scores(np.asarray(fresh, dtype=np.float32)).tolist()
        for score, features in zip(answers, fresh, strict=True):
            bound = suspected_review_at if features[SUSPECTED] else review_at
            is_blocked = score >= block_at and not (explored_share and rng.random() < explored_share)
            action = "block_payment" if is_blocked else "allow_payment"
            if not is_blocked and score >= bound:
                action = "review_payment"
            played.scores.append(score)
            played.actions.append(action)

    def decision_of(transaction_id: str, /, **_: object) -> Decided:
        place = places[transaction_id]
        if place >= len(played.actions):
            decide_all()
        return Decided("allow", played.actions[place])

    for fact in with_late_outcomes(facts, decision_of):
        if fact is None:
            continue
        features = state.of(fact)
        if features is not None and isinstance(fact, LabelledPayment):
            places[str(fact.data["transaction_id"])] = len(played.payments)
            played.payments.append(fact)
            played.features.append(features)
        elif fact.type == ChargedBack.event_type:
            played.charged_back.add(str(fact.data["transaction_id"]))
    decide_all()
    return played


def training_rows(
    played: Played, *, explored_share: float, block_at: float
) -> tuple[Array, Array, Array]:
    """Features, labels and weights of the payments whose truth was told or whose wait is over."""
    settled_ms = played.payments[-1].event_ms - int(CHARGEBACK_DAYS[1] * DAY_MS)
    scores = np.array(played.scores)
    keep = np.array(
        [
            action != "block_payment" and payment.event_ms <= settled_ms
            for payment, action in zip(played.payments, played.actions, strict=True)
        ]
    )
    labels = np.array([p.data["transaction_id"] in played.charged_back for p in played.payments])
    weights = np.where(scores >= block_at, 1.0 / (explored_share or 1.0), 1.0)
    # Two of three plainly genuine payments say nothing new; the third stands for them.
    is_plain = ~labels & (scores < 0.02)
    weights[is_plain] *= 3.0
    keep &= ~is_plain | (np.arange(len(is_plain)) % 3 == 0)
    return np.asarray(played.features, dtype=np.float32)[keep], labels[keep], weights[keep]


def fit(
    rows: Array, labels: Array, weights: Array, *, trees: int
) -> HistGradientBoostingClassifier:
    model = HistGradientBoostingClassifier(
        learning_rate=0.1, max_iter=trees, max_leaf_nodes=24, min_samples_leaf=60, l2_regularization=5.0,
        max_features=0.5, early_stopping=False, random_state=SEED,
        monotonic_cst=[DIRECTION.get(name, 0) for name in FEATURES],
    )  # fmt: skip
    with threadpool_limits(limits=1):  # sums of several threads differ in their last bits
        return model.fit(rows, labels, sample_weight=weights)


def train() -> tuple[HistGradientBoostingClassifier, int]:
    """The model, and how many rows it was fitted on. About two minutes of CPU."""
    rng = np.random.default_rng(SEED)

    def blunt(rows: Array) -> Array:
        return np.where(rng.random(len(rows)) < 0.05, 0.5, 0.0)

    parts = [
        training_rows(play(generate(world, 100 + n), blunt), explored_share=0.0, block_at=2.0)
        for n, world in enumerate(WORLDS)
    ]
    first = fit(*map(np.concatenate, zip(*parts, strict=True)), trees=70)
    parts = [(rows, labels, weights * 0.5) for rows, labels, weights in parts]
    for n, world in enumerate(WORLDS):
        played = play(
            generate(world, 200 + n), lambda rows: first.predict_proba(rows)[:, 1],
            explored_share=EXPLORED_SHARE,
        )  # fmt: skip
        parts.append(training_rows(played, explored_share=EXPLORED_SHARE, block_at=BLOCK_AT))
    rows, labels, weights = map(np.concatenate, zip(*parts, strict=True))
    return fit(rows, labels, weights, trees=140), len(rows)


def to_onnx(model: HistGradientBoostingClassifier) -> bytes:
    """One input `features` [n, len(FEATURES)], one output `confidence` [n, 1]: P(charged back)."""
    import onnx
    from onnx import TensorProto, helper
    from skl2onnx import to_onnx as convert
    from skl2onnx.common.data_types import FloatTensorType

    proto = convert(
        model, initial_types=[("features", FloatTensorType([None, len(FEATURES)]))],
        options={"zipmap": False}, target_opset={"": 15, "ai.onnx.ml": 3},
    )  # fmt: skip
    graph = proto.graph
    graph.initializer.append(helper.make_tensor("fraud_column", TensorProto.INT64, [1], [1]))
    graph.node.append(
        helper.make_node("Gather", ["probabilities", "fraud_column"], ["confidence"], axis=1)
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("confidence", TensorProto.FLOAT, [None, 1]))
    graph.name = "payment-fraud"  # skl2onnx draws a random name
    proto.producer_version = ""
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))
