"""The features of sql/payments in plain Python: facts in, a payment's features out.

Training plays worlds of a million payments against changing models, which no cluster would do in
minutes; a test holds the SQL to this file. Each formula is explained in sql/payments. NaN stands
for SQL's NULL: unknown, or never happened.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contracts.payments import AuthorisationRequested, ChargedBack, ProfileChanged
from ops.world import NewFact
from ops.worlds.payments_generator import DAY_MS

EPOCH_MS = 1_640_995_200_000  # 2022-01-01T00:00:00Z
WEIGHT_MS = 14.0 * DAY_MS
SLOW_WEIGHT_MS = 60.0 * DAY_MS
WEIGHT_LIMIT = 300.0
OUTLIER_LOG = 1.1
FAR_LOG = 0.9
BURST_MS = 3_600_000
BURST_REACH_MS = 7_200_000
EPISODE_LIMIT = 1.2
SUSPECTED_FROM = 0.5
CLEARED_BY = 2
NAN = math.nan

# The model's inputs, in order: features of the situation payments.payment_assessed.
FEATURES = (
    "payments_seen", "amount_ratio_log", "amount_deviation",
    "gap_1_s", "gap_2_s", "gap_4_s", "gap_8_s", "tempo_4", "tempo_8", "is_new_device", "is_foreign",
    "account_far_chargebacks", "account_near_chargebacks", "account_fraud_days", "account_cleared_days",
    "terminal_chargebacks", "terminal_confirmations", "terminal_recoveries", "terminal_share",
    "terminal_intensity",
    "terminal_fraud_days", "terminal_mean_fraud_days", "terminal_first_fraud_days",
    "terminal_cleared_days", "terminal_news_days",
    "band_share", "band_judged_share", "is_terminal_suspected",
)  # fmt: skip


def weight(at_ms: float, fades_with_ms: float = WEIGHT_MS) -> float:
    return math.exp(max(-WEIGHT_LIMIT, min(WEIGHT_LIMIT, (at_ms - EPOCH_MS) / fades_with_ms)))


def _days(later_ms: float | None, earlier_ms: float | None) -> float:
    return NAN if later_ms is None or earlier_ms is None else (later_ms - earlier_ms) / DAY_MS


def _later(known_ms: int | None, at_ms: int) -> int:
    return at_ms if known_ms is None else max(known_ms, at_ms)


@dataclass(slots=True)
class _Account:
    times: deque[int] = field(default_factory=lambda: deque(maxlen=8))
    payments: int = 0
    first_ms: int | None = None
    raw_weight: float = 0.0
    raw_logs: float = 0.0
    habit: float = 0.0
    habit_logs: float = 0.0
    habit_squared_logs: float = 0.0
    home_country: str | None = None
    home_device: str | None = None
    previous_device: str | None = None
    far: float = 0.0
    near: float = 0.0
    fraud_ms: int | None = None
    genuine_ms: int | None = None
    burst_ms: int | None = None


@dataclass(slots=True)
class _Terminal:
    payments: float = 0.0
    frauds: float = 0.0
    fraud_ms_total: float = 0.0
    genuine: float = 0.0
    confirmations: int = 0
    confirmations_at_fraud: int = 0
    fraud_ms: int | None = None
    genuine_ms: int | None = None
    news_ms: int | None = None
    first_fraud_ms: int | None = None


@dataclass(slots=True)
class _Band:
    payments: float = 0.0
    frauds: float = 0.0
    genuine: float = 0.0


class Features:
    """Feed facts in the order of their log; `of` gives the features of a payment, else None.

    State: totals an account, a terminal and an amount band, for ever, as in the SQL.
    """

    def __init__(self) -> None:
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)
        self._terminals: defaultdict[str, _Terminal] = defaultdict(_Terminal)
        self._bands: defaultdict[tuple[str, int], _Band] = defaultdict(_Band)

    def of(self, fact: NewFact) -> list[float] | None:
        account = self._accounts[fact.subject]
        data: Mapping[str, Any] = fact.data
        if fact.type == AuthorisationRequested.event_type:
            features = self._payment(account, data, fact.event_ms)
            account.previous_device = data.get("device_id")
            account.times.append(fact.event_ms)
            return features
        if fact.type == ProfileChanged.event_type:
            account.home_country = data.get("country") or account.home_country
            account.home_device = data.get("device_id") or account.home_device
        else:
            is_fraud = fact.type == ChargedBack.event_type
            self._outcome(account, data, fact.event_ms, is_fraud=is_fraud)
        account.previous_device = None
        account.times.append(fact.event_ms)
        return None

    def _outcome(
        self, account: _Account, data: Mapping[str, Any], now: int, *, is_fraud: bool
    ) -> None:
        log, paid_ms = math.log(max(data["amount_minor"], 1)), min(data["payment_ms"], now)
        now_weight = weight(paid_ms)
        terminal, band = self._terminals[data["terminal_id"]], self._band(data, log)
        terminal.news_ms = _later(terminal.news_ms, now)
        if not is_fraud:
            account.genuine_ms = _later(account.genuine_ms, paid_ms)
            terminal.genuine += now_weight
            terminal.genuine_ms = _later(terminal.genuine_ms, paid_ms)
            terminal.confirmations += 1
            band.genuine += now_weight
            return
        is_far = (log - FAR_LOG) * account.raw_weight > account.raw_logs and account.raw_weight > 0
        if is_far:
            account.far += now_weight
        else:
            account.near += now_weight
        account.fraud_ms = _later(account.fraud_ms, paid_ms)
        is_in_burst = account.burst_ms is not None and abs(paid_ms - account.burst_ms) < BURST_REACH_MS
        is_unexplained = not is_far and not is_in_burst and account.far <= 0.5 * now_weight
        if is_unexplained:
            terminal.frauds += now_weight
            terminal.fraud_ms_total += now_weight * (paid_ms - EPOCH_MS)
            terminal.fraud_ms = _later(terminal.fraud_ms, paid_ms)
            if terminal.frauds < EPISODE_LIMIT * now_weight:
                terminal.first_fraud_ms = paid_ms
            if paid_ms > (terminal.genuine_ms or 0):
                terminal.confirmations_at_fraud = terminal.confirmations
        band.frauds += now_weight

    def _payment(self, account: _Account, data: Mapping[str, Any], now: int) -> list[float]:
        log = math.log(max(data["amount_minor"], 1))
        now_weight, slow = weight(now), weight(now, SLOW_WEIGHT_MS)
        ratio = deviation = NAN
        if account.habit > 1e-9 * slow:
            mean = account.habit_logs / account.habit
            variance = account.habit_squared_logs / account.habit - mean * mean
            ratio = log - mean
            if account.payments >= 3:
                deviation = ratio / (math.sqrt(max(0.0, variance)) + 0.1)
        self._remember(account, now, log, slow)
        times = account.times
        gaps = {k: float(abs(now - times[-k])) if len(times) >= k else NAN for k in (1, 2, 4, 8)}
        if gaps[4] < BURST_MS:
            account.burst_ms = _later(account.burst_ms, now)
        assert account.first_ms is not None
        usual = max(0.0, (now - account.first_ms) / account.payments)
        terminal, band = self._terminals[data["terminal_id"]], self._band(data, log)
        terminal.payments += now_weight
        band.payments += now_weight
        mean_fraud_days = intensity = NAN
        recoveries = terminal.confirmations - terminal.confirmations_at_fraud
        is_suspected = terminal.frauds >= SUSPECTED_FROM * now_weight and recoveries < CLEARED_BY
        fraud_days = _days(now, terminal.fraud_ms)
        if terminal.frauds > 0:
            mean_ms = EPOCH_MS + terminal.fraud_ms_total / terminal.frauds
            mean_fraud_days = _days(now, mean_ms)
            expected = terminal.payments / 14 * max(0.0, 2 * mean_fraud_days - fraud_days - 4.5)
            intensity = terminal.frauds / (now_weight + expected)
        return [
            account.payments, ratio, deviation,
            *(gaps[k] / 1000 for k in (1, 2, 4, 8)),
            *((gaps[k] + 60_000) / (k * usual + 60_000) for k in (4, 8)),
            self._is_new_device(account, data.get("device_id")),
            self._is_foreign(account, data.get("country")),
            account.far / now_weight, account.near / now_weight,
            _days(now, account.fraud_ms), _days(account.genuine_ms, account.fraud_ms),
            terminal.frauds / now_weight, terminal.genuine / now_weight,
            recoveries, terminal.frauds / (terminal.payments + now_weight), intensity,
            fraud_days, mean_fraud_days, _days(now, terminal.first_fraud_ms),
            _days(terminal.genuine_ms, terminal.fraud_ms), _days(now, terminal.news_ms),
            band.frauds / (band.payments + 5 * now_weight),
            band.frauds / (band.frauds + band.genuine + now_weight), float(is_suspected),
        ]  # fmt: skip

    @staticmethod
    def _remember(account: _Account, now: int, log: float, slow: float) -> None:
        is_habit = (
            account.payments < 3
            or (log - OUTLIER_LOG) * account.raw_weight <= account.raw_logs
        )
        account.first_ms = now if account.first_ms is None else min(account.first_ms, now)
        account.payments += 1
        account.raw_weight += slow
        account.raw_logs += slow * log
        if is_habit:
            account.habit += slow
            account.habit_logs += slow * log
            account.habit_squared_logs += slow * log * log

    def _band(self, data: Mapping[str, Any], log: float) -> _Band:
        return self._bands[data.get("currency") or "", math.floor(7.0 * log)]

    @staticmethod
    def _is_new_device(account: _Account, device: str | None) -> float:
        known = [d for d in (account.home_device, account.previous_device) if d is not None]
        return float(device not in known) if device is not None and known else NAN

    @staticmethod
    def _is_foreign(account: _Account, country: str | None) -> float:
        if country is None or account.home_country is None:
            return NAN
        return float(country != account.home_country)
