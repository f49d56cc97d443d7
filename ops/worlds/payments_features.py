"""Reference of sql/payments in plain Python: one fact in, and for a payment its features out.

Training uses it (a cluster would take minutes), and a test holds the SQL to it. The two levels of
the account and of the terminal are one step here; each formula stands in sql/payments with words.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass, field

from contracts.payments import AuthorisationRequested, ChargedBack, ProfileChanged
from ops.world import NewFact

DAY_MS = 86_400_000
EPOCH_MS = 1_577_836_800_000  # 2020-01-01T00:00:00Z
FAST_TAU_MS = 14.0 * DAY_MS
SLOW_TAU_MS = 60.0 * DAY_MS
WEIGHT_LIMIT = 600.0  # bound of the exponent: +-23 years around the epoch
BURST_MS = 3_600_000  # five facts of an account within it
BURST_REACH_MS = 7_200_000
OUTLIER_LOG = 1.1  # a payment over e^1.1 raw habits is no habit
FAR_LOG = 0.9  # a charged back amount over e^0.9 raw habits speaks of the account
CAP_DAYS = 60.0
BANDS_PER_E = 7.0

CANDIDATES = (
    "history", "amount_ratio", "amount_deviation", "amount_peak_ratio", "amount_linear",
    "gap_1", "gap_4", "gap_8", "tempo_4", "tempo_8", "is_new_device", "is_foreign",
    "account_far", "account_near", "account_confirmed", "account_fraud_age_days", "account_cleared_days",
    "terminal_chargebacks", "terminal_unexplained", "terminal_confirmed", "terminal_recovered", "terminal_share", "terminal_intensity",
    "terminal_fraud_age_days", "terminal_mean_fraud_days", "terminal_cleared_days", "terminal_news_days",
    "band_share", "band_judged_share", "band_chargebacks",
)


def weight(ms: float, tau_ms: float = FAST_TAU_MS) -> float:
    return math.exp(max(-WEIGHT_LIMIT, min(WEIGHT_LIMIT, (ms - EPOCH_MS) / tau_ms)))


def clip(value: float, low: float, high: float) -> float:
    return low if value < low else high if value > high else value


@dataclass(slots=True)
class _Account:
    times: deque[int] = field(default_factory=lambda: deque(maxlen=8))
    n: int = 0
    first: int = 0
    raw_w: float = 0.0
    raw_log: float = 0.0
    w: float = 0.0
    log: float = 0.0
    log2: float = 0.0
    s: float = 0.0
    s2: float = 0.0
    peak: float = -1e9
    country: str | None = None
    device: str | None = None
    last_device: str | None = None
    far: float = 0.0
    near: float = 0.0
    conf: float = 0.0
    last_fraud: int = 0
    last_conf: int = 0
    last_burst: int = 0


@dataclass(slots=True)
class _Terminal:
    pay: float = 0.0
    cb: float = 0.0
    un: float = 0.0
    un_day: float = 0.0
    conf: float = 0.0
    recovered: float = 0.0
    last_fraud: int = 0
    last_conf: int = 0
    news: int = 0


def age(now: int, then: float) -> float:
    return clip((now - then) / DAY_MS, 0.0, CAP_DAYS) if then else CAP_DAYS


def apart(conf: int, fraud: int) -> float:
    return clip((conf - fraud) / DAY_MS, -30.0, 30.0) if conf and fraud else 0.0


class FeatureState:
    def __init__(self) -> None:
        self.accounts: defaultdict[str, _Account] = defaultdict(_Account)
        self.terminals: defaultdict[str, _Terminal] = defaultdict(_Terminal)
        self.bands: defaultdict[tuple[object, int], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def on_fact(self, fact: NewFact) -> list[float] | None:
        a = self.accounts[fact.subject]
        data = fact.data
        now = fact.event_ms
        t4 = a.times[-4] if len(a.times) >= 4 else 0
        times = a.times
        result = None
        if fact.type == AuthorisationRequested.event_type:
            if t4 and now - t4 < BURST_MS:
                a.last_burst = max(a.last_burst, now)
            result = self._payment(a, data, now)
            a.last_device = data.get("device_id")
        else:
            if t4 and now - t4 < BURST_MS and fact.type == AuthorisationRequested.event_type:
                pass
            a.last_device = None
            if fact.type == ProfileChanged.event_type:
                a.country, a.device = data.get("country") or a.country, data.get("device_id") or a.device
            else:
                self._late(a, fact.type == ChargedBack.event_type, data, now)
        times.append(now)
        return result

    def _late(self, a: _Account, is_fraud: bool, data, now: int) -> None:
        p_ms = data["payment_ms"]
        w = weight(p_ms)
        amount = max(data["amount_minor"], 1)
        log = math.log(amount)
        t = self.terminals[data["terminal_id"]]
        band = self.bands[data.get("currency"), math.floor(BANDS_PER_E * log)]
        t.news = max(t.news, now)
        if not is_fraud:
            a.conf += w
            a.last_conf = max(a.last_conf, p_ms)
            t.conf += w
            t.last_conf = max(t.last_conf, p_ms)
            if p_ms > t.last_fraud:
                t.recovered += w
            band[2] += w
            return
        is_far = a.raw_w > 0 and log > a.raw_log / a.raw_w + FAR_LOG
        if is_far:
            a.far += w
        else:
            a.near += w
        a.last_fraud = max(a.last_fraud, p_ms)
        explained = is_far or abs(p_ms - a.last_burst) < BURST_REACH_MS or a.far / w > 0.5
        t.cb += w
        if not explained:
            t.un += w
            t.un_day += w * (p_ms - EPOCH_MS) / DAY_MS
            t.last_fraud = max(t.last_fraud, p_ms)
        band[1] += w

    def _payment(self, a: _Account, data, now: int) -> list[float]:
        amount = max(data["amount_minor"], 1)
        log = math.log(amount)
        fast, slow = weight(now), weight(now, SLOW_TAU_MS)
        fade = 1.0 / fast
        ratio = z = z_lin = peak = 0.0
        if a.w > 0:
            mean = a.log / a.w
            ratio = clip(log - mean, -4, 4)
            peak = clip(log - (a.peak - (now - EPOCH_MS) / SLOW_TAU_MS), -4, 4)
            if a.n >= 3:
                z = clip((log - mean) / (math.sqrt(max(0.0, a.log2 / a.w - mean * mean)) + 0.1), -6, 12)
                m = a.s / a.w
                z_lin = clip((amount - m) / (math.sqrt(max(0.0, a.s2 / a.w - m * m)) + 0.1 * m), -6, 12)
        times = a.times
        gaps = [
            math.log1p(clip(now - times[-k], 0.0, CAP_DAYS * DAY_MS) / 60000.0) if len(times) >= k else math.log1p(CAP_DAYS * 1440)
            for k in (1, 4, 8)
        ]
        typical = (now - a.first) / a.n if a.n else 0
        tempo = [
            clip(math.log((max(0, now - times[-k]) + 60000.0) / (k * typical + 60000.0)), -8, 2)
            if len(times) >= k and a.n >= k and typical > 0 else 0.0
            for k in (4, 8)
        ]
        device, country = data.get("device_id"), data.get("country")
        known = [d for d in (a.device, a.last_device) if d]
        is_new = float(bool(device and known and device not in known))
        is_foreign = float(bool(country and a.country and country != a.country))
        history = math.log1p(a.n)
        # habit update
        is_habit = a.n < 3 or log <= a.raw_log / a.raw_w + OUTLIER_LOG
        if not a.n:
            a.first = now
        a.first = min(a.first, now)
        a.n += 1
        a.raw_w += slow
        a.raw_log += slow * log
        if is_habit:
            a.w += slow
            a.log += slow * log
            a.log2 += slow * log * log
            a.s += slow * amount
            a.s2 += slow * amount * amount
            a.peak = max(a.peak, log + (now - EPOCH_MS) / SLOW_TAU_MS)
        t = self.terminals[data["terminal_id"]]
        t.pay += fast
        band = self.bands[data.get("currency"), math.floor(BANDS_PER_E * log)]
        band[0] += fast
        pay, un = t.pay * fade, t.un * fade
        mean_days = age(now, EPOCH_MS + DAY_MS * t.un_day / t.un) if t.un else CAP_DAYS
        last_days = age(now, t.last_fraud)
        expected = pay / 14 * max(0.0, 2 * mean_days - last_days - 4.5)
        b_pay, b_cb, b_conf = (x * fade for x in band)
        return [
            history, ratio, z, peak, z_lin, *gaps, *tempo, is_new, is_foreign,
            a.far * fade, a.near * fade, a.conf * fade, age(now, a.last_fraud), apart(a.last_conf, a.last_fraud),
            t.cb * fade, un, t.conf * fade, t.recovered * fade, un / (pay + 1), un / (expected + 1),
            last_days, mean_days, apart(t.last_conf, t.last_fraud), age(now, t.news),
            b_cb / (b_pay + 5), b_cb / (b_cb + b_conf + 1), math.log1p(b_cb),
        ]
