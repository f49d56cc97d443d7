"""A seeded world of payments: who pays where, who steals. Labels stay on the objects made here.

Four kinds of fraud: a *burst* (many payments of one account within the hour), an *outlier* (one
payment far over the account's habit), a *takeover* (some of an account's payments several times its
habit, for days) and a compromised *terminal* (any payment there; nothing in the payment itself
tells). Pure and seeded: the same settings and seed give the same facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from contracts.payments import AuthorisationRequested, ProfileChanged
from ops.world import NewFact

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
COUNTRIES = ("DE", "FR", "NL", "PL", "ES", "IT", "AT", "SE")
CURRENCIES = {"PL": "PLN", "SE": "SEK"}
_PAYMENTS_PER_ACCOUNT_AND_DAY = 2.75
_DEFAULT_DAYS = 55


@dataclass(frozen=True)
class LabelledPayment(NewFact):
    """An authorisation request with its hidden truth, which is never part of `data`.

    `is_fraud` None: nobody knows, so the world says nothing later. `scheme` is for measuring only.
    """

    is_fraud: bool | None = None
    scheme: str = ""


@dataclass(frozen=True)
class WorldSettings:
    """One parameterised world. Rates are per day of event time, amounts in minor units."""

    accounts: int = 400
    terminals: int = 150
    days: int = 60
    start_ms: int = 1_704_067_200_000  # 2024-01-01T00:00:00Z
    payments_per_day: tuple[float, float] = (0.3, 5.0)
    favourite_terminals: int = 12
    popularity_shape: float = 3.0  # Pareto: the smaller, the more a few terminals take it all
    amount_family: Literal["lognormal", "normal", "gamma"] = "lognormal"
    typical_amount: tuple[float, float] = (800.0, 9_000.0)
    spread: tuple[float, float] = (0.25, 0.5)  # log sigma, or standard deviation over mean
    has_profile: bool = True  # currency, country, device, profile facts
    bursts_per_day: float = 0.7
    burst_payments: tuple[int, int] = (12, 28)
    outliers_per_day: float = 1.5
    takeovers_per_day: float = 0.5
    takeover_days: tuple[int, int] = (5, 16)
    takeover_share: float = 0.35
    takeover_factor: tuple[float, float] = (4.5, 7.0)
    compromises_per_day: float = 0.18
    compromise_days: tuple[int, int] = (21, 42)
    compromise_share: float = 0.98
    forbidden_above: float | None = None  # every payment above this amount is fraud
    sprees_per_account: float = 0.6  # genuine: a few purchases within two hours
    splurge_share: float = 0.001  # genuine: a purchase two to three times the habit


def world_of_size(count: int) -> WorldSettings:
    """The default world, made so large and long that it holds about `count` facts."""
    base = WorldSettings()
    accounts = int(np.clip(count / (_DEFAULT_DAYS * _PAYMENTS_PER_ACCOUNT_AND_DAY), 60, base.accounts))
    share = accounts / base.accounts
    return replace(
        base,
        accounts=accounts,
        terminals=max(25, round(base.terminals * share)),
        days=int(count / (accounts * _PAYMENTS_PER_ACCOUNT_AND_DAY) * 1.15) + 1,
        bursts_per_day=base.bursts_per_day * share,
        outliers_per_day=base.outliers_per_day * share,
        takeovers_per_day=base.takeovers_per_day * share,
        compromises_per_day=base.compromises_per_day * share,
    )


def generate(settings: WorldSettings, seed: int, count: int | None = None) -> Iterator[NewFact]:
    """Payments (LabelledPayment) and profile changes in order of event time, at most `count`."""
    return islice(iter(_World(settings, seed).facts()), count)


@dataclass
class _Draft:
    """A payment before it has an id; ids are given once all are in order."""

    event_ms: int
    account: int
    terminal: int
    amount: float
    country: str | None
    device_id: str | None
    scheme: str = ""


class _World:
    def __init__(self, settings: WorldSettings, seed: int) -> None:
        self._settings = settings
        self._seed = seed
        self._rng = rng = np.random.default_rng(seed)
        self._end_ms = settings.start_ms + settings.days * DAY_MS
        popularity = rng.pareto(settings.popularity_shape, settings.terminals) + 0.3
        self._popularity = popularity / popularity.sum()
        low, high = np.log(settings.typical_amount)
        self._typical = np.exp(rng.uniform(low, high, settings.accounts))
        self._spread = rng.uniform(*settings.spread, settings.accounts)
        self._rates = rng.uniform(*settings.payments_per_day, settings.accounts)
        self._compromised = self._episodes(
            settings.compromises_per_day, settings.compromise_days, settings.terminals
        )
        self._stolen = self._episodes(
            settings.takeovers_per_day, settings.takeover_days, settings.accounts
        )
        self._profiles = [self._profile(account) for account in range(settings.accounts)]

    def facts(self) -> list[NewFact]:
        settings = self._settings
        drafts: list[_Draft] = []
        for account in range(settings.accounts):
            drafts += self._ordinary(account)
        drafts += self._outliers() + self._bursts()
        drafts.sort(key=lambda draft: (draft.event_ms, draft.account, draft.terminal))
        facts: list[NewFact] = [
            self._profile_change(account, *entry)
            for account, history in enumerate(self._profiles)
            for entry in history
            if settings.has_profile
        ]
        shares = self._rng.random(len(drafts)).tolist()
        facts += [self._payment(i, d, shares[i]) for i, d in enumerate(drafts)]
        facts.sort(key=lambda fact: fact.event_ms)  # stable: a profile stands before its payments
        return facts

    # ------------------------------------------------------------------------------ payments

    def _ordinary(self, account: int) -> list[_Draft]:
        """An account's own payments; some of them stolen while it is taken over."""
        settings, rng = self._settings, self._rng
        shops = rng.choice(
            settings.terminals, min(settings.favourite_terminals, settings.terminals),
            replace=False, p=self._popularity,
        )  # fmt: skip
        count = rng.poisson(self._rates[account] * settings.days)
        days = np.sort(rng.integers(0, settings.days, count))
        clock = np.clip(rng.normal(14.0, 4.5, count), 0.0, 23.99)
        times = settings.start_ms + days * DAY_MS + (clock * HOUR_MS).astype(np.int64)
        for at in rng.uniform(0, settings.days, rng.poisson(settings.sprees_per_account)):
            spree = at * DAY_MS + rng.uniform(0, 2 * HOUR_MS, rng.integers(3, 6))
            times = np.append(times, settings.start_ms + spree.astype(np.int64))
        times = times[times < self._end_ms]
        amounts = self._amounts(account, len(times))
        is_splurge = rng.random(len(times)) < settings.splurge_share
        amounts = np.where(is_splurge, amounts * rng.uniform(1.6, 2.6, len(times)), amounts)
        weights = rng.dirichlet(np.full(len(shops), 1.2))
        visited = shops[rng.choice(len(shops), len(times), p=weights)]
        is_abroad = (rng.random(len(times)) < 0.01).tolist()
        drafts = []
        for i, (at, shop) in enumerate(zip(times.tolist(), visited.tolist(), strict=True)):
            draft = _Draft(at, account, shop, float(amounts[i]), *self._profile_at(account, at))
            if is_abroad[i] and settings.has_profile:
                draft.country = self._any_country()
            if self._is_within(self._stolen, account, at) and rng.random() < settings.takeover_share:
                draft.amount *= rng.uniform(*settings.takeover_factor)
                draft.scheme = "takeover"
                if settings.has_profile and rng.random() < 0.4:
                    draft.device_id = self._strange_device()
            drafts.append(draft)
        return drafts

    def _outliers(self) -> list[_Draft]:
        settings, rng = self._settings, self._rng
        drafts = []
        for at, account in self._moments(settings.outliers_per_day, settings.accounts):
            amount = float(self._amounts(account, 1)[0]) * rng.uniform(6.0, 15.0)
            shop = int(rng.integers(settings.terminals))
            draft = _Draft(at, account, shop, amount, *self._profile_at(account, at), "outlier")
            if settings.has_profile and rng.random() < 0.5:
                draft.country, draft.device_id = self._any_country(), self._strange_device()
            drafts.append(draft)
        return drafts

    def _bursts(self) -> list[_Draft]:
        settings, rng = self._settings, self._rng
        drafts = []
        for at, account in self._moments(settings.bursts_per_day, settings.accounts):
            country, device_id = self._profile_at(account, at)
            if settings.has_profile and rng.random() < 0.6:
                device_id = self._strange_device()
            size = int(rng.integers(settings.burst_payments[0], settings.burst_payments[1] + 1))
            length_ms = rng.uniform(15, 60) * 60_000
            times = at + np.sort(rng.uniform(0, length_ms, size)).astype(np.int64)
            shops = rng.integers(0, settings.terminals, size)
            amounts = self._amounts(account, size)
            drafts += [
                _Draft(int(time), account, int(shop), float(amount), country, device_id, "burst")
                for time, shop, amount in zip(times, shops, amounts, strict=True)
                if time < self._end_ms
            ]
        return drafts

    def _payment(self, number: int, draft: _Draft, share: float) -> LabelledPayment:
        settings, scheme = self._settings, draft.scheme
        is_compromised = self._is_within(self._compromised, draft.terminal, draft.event_ms)
        if not scheme and is_compromised and share < settings.compromise_share:
            scheme = "terminal"
        if settings.forbidden_above is not None and draft.amount > settings.forbidden_above:
            scheme = scheme or "limit"
        home = self._profile_at(draft.account, draft.event_ms)[0]
        data: dict[str, object] = {
            "transaction_id": f"tx{self._seed}-{number:08d}",
            "terminal_id": f"term{draft.terminal:05d}",
            "amount_minor": max(1, round(draft.amount)),
        }
        if settings.has_profile:
            data |= {
                "currency": CURRENCIES.get(str(home), "EUR"),
                "country": draft.country,
                "device_id": draft.device_id,
            }
        return LabelledPayment(
            AuthorisationRequested.event_type, f"acc{draft.account:06d}", draft.event_ms, data,
            str(data["transaction_id"]), bool(scheme), scheme,
        )  # fmt: skip

    def _amounts(self, account: int, size: int) -> NDArray[np.float64]:
        mean, relative, rng = self._typical[account], self._spread[account], self._rng
        match self._settings.amount_family:
            case "lognormal":
                return np.asarray(mean * np.exp(rng.normal(0.0, relative, size)))
            case "gamma":
                return rng.gamma(1.0 / relative**2, mean * relative**2, size)
            case "normal":
                drawn = rng.normal(mean, mean * relative, size)
                instead = rng.uniform(0.05 * mean, 1.9 * mean, size)
                return np.where(drawn <= 0, instead, drawn)

    # ------------------------------------------------------------------------------ profiles

    def _profile(self, account: int) -> list[tuple[int, str | None, str | None]]:
        """(from_ms, country, device): where the account is at home and what it pays with."""
        settings, rng = self._settings, self._rng
        if not settings.has_profile:
            return [(settings.start_ms, None, None)]
        home = self._any_country()
        changes = np.sort(rng.uniform(0, settings.days, rng.poisson(settings.days / 120.0)))
        times = [settings.start_ms, *(settings.start_ms + int(at * DAY_MS) for at in changes)]
        return [(at, home, f"d{account}-{number}") for number, at in enumerate(times)]

    def _profile_at(self, account: int, at_ms: int) -> tuple[str | None, str | None]:
        current = self._profiles[account][0]
        for entry in self._profiles[account][1:]:
            if entry[0] > at_ms:
                break
            current = entry
        return current[1:]

    def _profile_change(
        self, account: int, at_ms: int, country: str | None, device_id: str | None
    ) -> NewFact:
        data = {"country": country, "currency": CURRENCIES.get(str(country), "EUR"), "device_id": device_id}
        name = f"acc{account:06d}"
        return NewFact(ProfileChanged.event_type, name, at_ms, data, f"{at_ms}|{device_id}")

    def _any_country(self) -> str:
        return COUNTRIES[self._rng.integers(len(COUNTRIES))]

    def _strange_device(self) -> str:
        return f"x{self._rng.integers(10**6)}"

    # -------------------------------------------------------------------------------- chance

    def _moments(self, per_day: float, among: int) -> list[tuple[int, int]]:
        """(event_ms, which of `among`) at random."""
        settings, rng = self._settings, self._rng
        count = rng.poisson(per_day * settings.days)
        times = settings.start_ms + (rng.uniform(0, settings.days, count) * DAY_MS).astype(np.int64)
        return sorted(zip(times.tolist(), rng.integers(0, among, count).tolist(), strict=True))

    def _episodes(
        self, per_day: float, days: tuple[int, int], among: int
    ) -> dict[int, list[tuple[int, int]]]:
        spans: dict[int, list[tuple[int, int]]] = {}
        for at, which in self._moments(per_day, among):
            length = int(self._rng.integers(days[0], days[1] + 1))
            spans.setdefault(which, []).append((at, at + length * DAY_MS))
        return spans

    @staticmethod
    def _is_within(spans: dict[int, list[tuple[int, int]]], which: int, at_ms: int) -> bool:
        return any(start <= at_ms < stop for start, stop in spans.get(which, ()))
