"""Online: every lead of a forecast is scored while it is in memory, so that its fields need not be kept.

The sums are those of verifying a run store that keeps every channel and lead on the whole product grid.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from fengwu_ghr.config import VerifySection
from fengwu_ghr.errors import InputError
from fengwu_ghr.grid import LatLonGrid
from fengwu_ghr.store import RunStore
from fengwu_ghr.variables import Channel
from fengwu_ghr.verify.fields import Field, what_is_missing
from fengwu_ghr.verify.kept import KeptSums
from fengwu_ghr.verify.pieces import missing, score_pair
from fengwu_ghr.verify.quantities import channels_of, earlier
from fengwu_ghr.verify.verification import plan_verification

Product = Callable[[Channel], Field]
"""A channel of the lead in memory, on the product grid, in registry units; called from several threads."""


@dataclass(eq=False)
class LeadInMemory:
    """A forecast under way as a source of fields: the lead that is in memory, and parts of those just before."""

    name: str
    grid: LatLonGrid
    channels: tuple[Channel, ...]
    initial_time: datetime
    lead_times: tuple[timedelta, ...]
    """Those that will be in memory; 0 is read from the store, where that keeps it whole."""
    mark: str
    """What decides the fields, as text."""
    store: RunStore | None = None
    kind: str = "forecast"
    parts: dict[tuple[Channel, timedelta], Field] = field(default_factory=dict)
    _lead: timedelta | None = None
    _product: Product | None = None

    @property
    def initial_times(self) -> tuple[datetime, ...]:
        return (self.initial_time,)

    def leads(self, initial_time: datetime) -> tuple[timedelta, ...]:
        return self.lead_times if initial_time == self.initial_time else ()

    def holds(self, channel: Channel, initial_time: datetime, lead: timedelta) -> bool:
        return channel in self.channels and lead in self.leads(initial_time)

    def fingerprint(self, initial_time: datetime, lead: timedelta) -> str:
        return f"{self.mark} {lead}"

    def close(self) -> None:
        self.parts.clear()

    def show(self, lead: timedelta, product: Product, reaches: Mapping[Channel, timedelta]) -> None:
        """This lead is the one in memory; of it these channels stay, until leads have come so far after it."""
        self._lead, self._product = lead, product
        self.parts = {key: value for key, value in self.parts.items() if lead - key[1] <= reaches[key[0]]}
        self.parts |= {(channel, lead): product(channel) for channel in reaches}

    def read(self, channel: Channel, initial_time: datetime, lead: timedelta) -> Field:
        """Raises InputError for what is not in memory."""
        if lead == self._lead and self._product is not None:
            return self._product(channel)
        if (channel, lead) in self.parts:
            return self.parts[channel, lead]
        if not lead and self.store is not None:
            return self.store.read(channel, initial_time, lead)
        raise InputError(f"{what_is_missing(channel, initial_time, lead)} is no longer in memory")


class OnlineVerification:
    """Scores the leads of one forecast as they come, in `settings.output/sums`.

    Raises the errors of `plan_verification`, and UsageError where the output is of another verification.
    """

    def __init__(self, settings: VerifySection, forecast: LeadInMemory, *, threads: int) -> None:
        self.forecast = forecast
        self._kept = KeptSums(settings.output)
        with ExitStack() as opened:
            self._made = opened.enter_context(plan_verification(settings, forecast))
            self._kept.check(self._made.description())
            self.due = {lead for _, lead in missing(self._made)}
            """Leads that are not scored yet."""
            opened.pop_all()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="score")

    def __enter__(self) -> "OnlineVerification":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._made.__exit__(*exception)

    @property
    def notes(self) -> Sequence[str]:
        return self._made.notes

    @property
    def reach(self) -> timedelta:
        """So long before a lead that is due the leads must be seen."""
        return max(self._reaches.values(), default=timedelta(0))

    @cached_property
    def _reaches(self) -> dict[Channel, timedelta]:
        """How long channels must stay in memory: rain of 24 hours has four parts."""
        quantities = sorted(self._made.quantities, key=lambda name: max(earlier(name)))  # the longest counts
        reaches = {c: max(earlier(name)) for name in quantities for c in channels_of(name)}
        return {channel: reach for channel, reach in reaches.items() if reach}

    def begin(self) -> None:
        """The output is of this verification, beside forecasts of other initial times."""
        self._kept.claim(self._made.description(), adds=True)

    def see(self, lead: timedelta, product: Product) -> None:
        """The lead is scored where it is due; called for every lead in turn. Raises the errors of reading."""
        self.forecast.show(lead, product, self._reaches)
        if lead in self.due:
            score_pair(self._made, (self.forecast.initial_time, lead), run=self._pool.map)
            self.due.discard(lead)
