"""From sums to a table: scores by method, threshold and lead, with intervals over hours of events."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64

from fengwu_ghr.durable import make_folder, replace_file, writing
from fengwu_ghr.nowcast.scores import (
    BANDS_KM,
    FRACTION_KM,
    FRACTION_THRESHOLDS,
    THRESHOLDS,
    Scored,
    pooled,
    tuned_cuts,
)
from fengwu_ghr.verify.events import csi, false_alarm_ratio, frequency_bias, hit_rate, hss
from fengwu_ghr.verify.metrics import bootstrap
from fengwu_ghr.verify.neighbourhood import fss
from fengwu_ghr.verify.spectra import power_ratio
from fengwu_ghr.verify.statistics import Sums

POOLED_MINUTES = (30, 120)
"""Leads, from and to, that headline scores pool."""
SCORES: Mapping[str, Callable[[Sums], Float64[np.ndarray, "*axes"]]] = {
    "HSS": hss,
    "CSI": csi,
    "POD": hit_rate,
    "FAR": false_alarm_ratio,
    "bias": frequency_bias,
}
HEADLINE = (35.0, 45.0)
COLUMNS = (
    "method", "HSS 35", "bias 35", "HSS 35 tuned", "bias 35 tuned", "HSS 45", "POD 45", "FAR 45", "bias 45",
    "HSS 45 tuned", "HSS 20", *(f"power {low:g}-{high:g} km" for low, high in BANDS_KM),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Compared:
    """The sums of every method on test events, and its cuts, tuned on training events."""

    test: Mapping[str, Scored]
    cuts: Mapping[str, Float64[np.ndarray, "lead threshold"]]

    @classmethod
    def of(cls, test: Mapping[str, Scored], train: Mapping[str, Scored]) -> "Compared":
        """Cuts of leads are those of the same minutes; the threshold itself where training has none."""
        found = {}
        for name, scored in test.items():
            cuts = np.broadcast_to(np.array(THRESHOLDS), (len(scored.minutes), len(THRESHOLDS))).copy()
            if name in train:
                tuned = tuned_cuts(train[name].counts, np.array(THRESHOLDS))
                for row, minutes in enumerate(scored.minutes):
                    if minutes in train[name].minutes:
                        cuts[row] = tuned[train[name].minutes.index(minutes)]
            found[name] = cuts
        return cls(test, found)

    def tables(self, method: str, *, tuned: bool) -> Sums:
        """(unit, lead, threshold)."""
        return self.test[method].at(self.cuts[method] if tuned else np.array(THRESHOLDS))

    def rows(self) -> list[tuple[str, ...]]:
        """COLUMNS of every method: leads of POOLED_MINUTES pooled, 95 % intervals over units, power at 60 minutes."""
        return [self._row(name) for name in self.test]

    def _row(self, method: str) -> tuple[str, ...]:
        scored = self.test[method]
        chosen = _between(scored.minutes, *POOLED_MINUTES)
        plain, tuned = (pooled(self.tables(method, tuned=flag), chosen) for flag in (False, True))
        at = {threshold: THRESHOLDS.index(threshold) for threshold in THRESHOLDS}

        def shown(score: str, sums: Sums, threshold: float, *, interval: bool = False) -> str:
            part = sums[..., [at[threshold]]]
            return _with_interval(SCORES[score], part) if interval else _number(SCORES[score](part))

        return (
            method,
            shown("HSS", plain, 35.0, interval=True), shown("bias", plain, 35.0),
            shown("HSS", tuned, 35.0, interval=True), shown("bias", tuned, 35.0),
            shown("HSS", plain, 45.0, interval=True), shown("POD", plain, 45.0), shown("FAR", plain, 45.0),
            shown("bias", plain, 45.0), shown("HSS", tuned, 45.0, interval=True), shown("HSS", plain, 20.0),
            *_powers_of_an_hour(scored),
        )  # fmt: skip

    def difference(self, one: str, other: str, threshold: float, *, tuned: bool = True) -> str:
        """HSS of one method less that of another, pooled, with the interval of the paired difference."""
        chosen = _between(self.test[one].minutes, *POOLED_MINUTES)
        place = THRESHOLDS.index(threshold)
        pair = [pooled(self.tables(name, tuned=tuned), chosen)[..., [place]] for name in (one, other)]
        interval = bootstrap(lambda a, b: hss(a) - hss(b), *pair, block=1)
        values = hss(pair[0]) - hss(pair[1]), interval.lower, interval.upper
        return "{:+.3f} ({:+.3f} ... {:+.3f})".format(*(float(value.item()) for value in values))

    def details(self) -> Iterator[dict[str, object]]:
        """Every score by method, event (all of them as `all`), threshold and lead."""
        for name, scored in self.test.items():
            for event, inside in _events(scored.units):
                for tuned in (False, True):
                    yield from _lines(
                        name, event, self.tables(name, tuned=tuned)[inside], scored.minutes, tuned
                    )
                yield from _other_lines(name, event, scored, inside)


def write_table(compared: Compared, folder: Path) -> tuple[Path, Path]:
    """`scores.csv`, all of them, and `table.md`, the headline, stand in the folder. Raises OutputError."""
    details = list(compared.details())
    text = StringIO()
    writer = csv.DictWriter(text, list(details[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(details)
    rows = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ("---",) * len(COLUMNS), *compared.rows())]
    paths = folder / "scores.csv", folder / "table.md"
    with writing(folder):
        make_folder(folder)
        for path, content in zip(paths, (text.getvalue(), "\n".join(rows) + "\n")):
            replace_file(path, content.encode())
    return paths


def by_lead(scored: Scored) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of one forecast's scores: a row for every lead."""
    sums = scored.at(np.array(THRESHOLDS))
    columns = ("minutes", *(f"HSS {t:g}" for t in THRESHOLDS), *(f"bias {t:g}" for t in THRESHOLDS))
    scores, biases = hss(sums), frequency_bias(sums)
    rows = [
        (str(minutes), *map(_number, scores[i]), *map(_number, biases[i]))
        for i, minutes in enumerate(scored.minutes)
    ]
    return columns, rows


def _lines(
    name: str, event: str, sums: Sums, minutes: Sequence[int], tuned: bool
) -> Iterator[dict[str, object]]:
    found = {key: score(sums) for key, score in SCORES.items()}
    for lead, threshold in np.ndindex(len(minutes), len(THRESHOLDS)):
        about = {"method": name, "event": event, "minutes": minutes[lead], "threshold": THRESHOLDS[threshold]}
        for key, values in found.items():
            yield about | {"score": key, "tuned": tuned, "value": f"{values[lead, threshold]:.5g}"}


def _other_lines(
    name: str, event: str, scored: Scored, inside: Bool[np.ndarray, " unit"]
) -> Iterator[dict[str, object]]:
    fractions, powers = fss(scored.fractions[inside]), power_ratio(scored.powers[inside].total())
    for lead, minutes in enumerate(scored.minutes):
        about = {"method": name, "event": event, "minutes": minutes}
        for i, j in np.ndindex(len(FRACTION_THRESHOLDS), len(FRACTION_KM)):
            what = about | {
                "threshold": FRACTION_THRESHOLDS[i],
                "score": f"FSS {FRACTION_KM[j]} km",
                "tuned": False,
            }
            yield what | {"value": f"{fractions[lead, i, j]:.5g}"}
        for band, value in zip(BANDS_KM, powers[lead]):
            what = about | {"threshold": "", "score": f"power {band[0]:g}-{band[1]:g} km", "tuned": False}
            yield what | {"value": f"{value:.5g}"}


def _events(units: Sequence[str]) -> Iterator[tuple[str, Bool[np.ndarray, " unit"]]]:
    """All units together, then those of each event: a unit is an event and an hour of it."""
    names = [unit.rsplit(" ", 2)[0] for unit in units]
    yield "all", np.ones(len(units), bool)
    for name in dict.fromkeys(names):
        yield name, np.array([name == other for other in names])


def _powers_of_an_hour(scored: Scored) -> list[str]:
    """By band, over those observed, at 60 minutes; chances of an event have none."""
    if 60 not in scored.minutes or not scored.powers.sums["forecast_power"].any():
        return ["-"] * len(BANDS_KM)
    return [_number(v) for v in power_ratio(scored.powers.total())[scored.minutes.index(60)]]


def _between(minutes: Sequence[int], first: int, last: int) -> Bool[np.ndarray, " lead"]:
    return np.array([first <= value <= last for value in minutes])


def _with_interval(score: Callable[[Sums], Float64[np.ndarray, "*axes"]], sums: Sums) -> str:
    """A score over units, and the central 95 % of it over units drawn anew."""
    interval = bootstrap(lambda part: np.nan_to_num(score(part)), sums, block=1)
    return f"{_number(score(sums))} ({_number(interval.lower)} ... {_number(interval.upper)})"


def _number(value: object) -> str:
    number = float(np.asarray(value).item())
    return f"{number:.3f}" if np.isfinite(number) else "-"
