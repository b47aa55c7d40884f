"""The orders of the channel sets, pinned as literal lists, and a registry that does not contradict itself."""

from collections import Counter

import pytest

from fengwu_ghr.variables import (
    CHANNEL_SETS,
    LEVELS,
    VARIABLES,
    Channel,
    channel,
    channel_set,
    standard_height,
    standard_temperature,
    variable,
)

# The order belongs to the weights: not generated here, so that a mistake in the generator shows.
GOLDEN = {
    "ghr-69": """
        z1000 z925 z850 z700 z600 z500 z400 z300 z250 z200 z150 z100 z50
        q1000 q925 q850 q700 q600 q500 q400 q300 q250 q200 q150 q100 q50
        u1000 u925 u850 u700 u600 u500 u400 u300 u250 u200 u150 u100 u50
        v1000 v925 v850 v700 v600 v500 v400 v300 v250 v200 v150 v100 v50
        t1000 t925 t850 t700 t600 t500 t400 t300 t250 t200 t150 t100 t50
        2t 10u 10v msl
    """,
    "ghr-74": """
        z1000 z925 z850 z700 z600 z500 z400 z300 z250 z200 z150 z100 z50
        q1000 q925 q850 q700 q600 q500 q400 q300 q250 q200 q150 q100 q50
        u1000 u925 u850 u700 u600 u500 u400 u300 u250 u200 u150 u100 u50
        v1000 v925 v850 v700 v600 v500 v400 v300 v250 v200 v150 v100 v50
        t1000 t925 t850 t700 t600 t500 t400 t300 t250 t200 t150 t100 t50
        10v 10u 100v 100u 2t tcc sp tp6h msl
    """,
    "ghr-88": """
        z1000 z925 z850 z700 z600 z500 z400 z300 z250 z200 z150 z100 z50
        q1000 q925 q850 q700 q600 q500 q400 q300 q250 q200 q150 q100 q50
        u1000 u925 u850 u700 u600 u500 u400 u300 u250 u200 u150 u100 u50
        v1000 v925 v850 v700 v600 v500 v400 v300 v250 v200 v150 v100 v50
        t1000 t925 t850 t700 t600 t500 t400 t300 t250 t200 t150 t100 t50
        w1000 w925 w850 w700 w600 w500 w400 w300 w250 w200 w150 w100 w50
        10v 10u 100v 100u 2t tcc sp msl tp6h ssr6h
    """,
    "fengwu-69": """
        10u 10v 2t msl
        z50 z100 z150 z200 z250 z300 z400 z500 z600 z700 z850 z925 z1000
        q50 q100 q150 q200 q250 q300 q400 q500 q600 q700 q850 q925 q1000
        u50 u100 u150 u200 u250 u300 u400 u500 u600 u700 u850 u925 u1000
        v50 v100 v150 v200 v250 v300 v400 v500 v600 v700 v850 v925 v1000
        t50 t100 t150 t200 t250 t300 t400 t500 t600 t700 t850 t925 t1000
    """,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_channel_orders(name: str) -> None:
    assert list(channel_set(name).names) == GOLDEN[name].split()


def test_no_channel_set_goes_unpinned() -> None:
    assert set(CHANNEL_SETS) == set(GOLDEN)
    assert [len(CHANNEL_SETS[name]) for name in GOLDEN] == [69, 74, 88, 69]


def test_a_channel_set_knows_its_rows() -> None:
    ours = channel_set("ghr-74")
    assert ours.index("z500") == ours.index(Channel("z", 500)) == 5
    assert ours.index("msl") == 73
    with pytest.raises(ValueError, match="ghr-74 has no channel w500; it has z1000, z925"):
        ours.index("w500")
    with pytest.raises(ValueError, match="no channel set is named 'ghr-70'; there are ghr-69"):
        channel_set("ghr-70")


@pytest.mark.parametrize("name", VARIABLES)
def test_every_variable_is_whole(name: str) -> None:
    entry = VARIABLES[name]
    low, high = entry.plausible
    assert entry.name == name
    assert entry.units
    assert entry.standard_name.islower()
    assert low < high
    assert entry.encoding.edition == 2
    assert entry.encoding.factor == 1 or entry.encoding.units, "a factor without the units it comes from"
    # Packing may carry a value a little beyond its bound; a plausible range starts there.
    assert entry.minimum is None or low <= entry.minimum
    assert entry.maximum is None or entry.maximum <= high


def test_every_derivation_starts_from_what_exists() -> None:
    for entry in VARIABLES.values():
        for derivation in entry.derivations:
            assert derivation.rule
            for source in derivation.inputs:
                assert source != entry.name
                assert VARIABLES[source].on_levels == entry.on_levels


def test_names_and_aliases_are_used_once() -> None:
    spelled = [name for v in VARIABLES.values() for name in (v.name, *v.aliases)]
    assert [name for name, count in Counter(spelled).items() if count > 1] == []


def test_param_ids_are_used_once() -> None:
    counts = Counter(entry.param_id for entry in VARIABLES.values())
    assert [number for number, count in counts.items() if count > 1] == []


def test_a_message_cannot_be_two_variables() -> None:
    """GRIB1 surfaces that carry no height of their own are told apart by table and parameter alone."""
    codings = Counter(
        (coding.edition, coding.parameter, coding.surface, coding.level)
        for entry in VARIABLES.values()
        for coding in entry.codings
    )
    assert [coding for coding, count in codings.items() if count > 1] == []


def test_winds_are_the_vectors_and_come_in_pairs() -> None:
    vectors = {name for name, entry in VARIABLES.items() if entry.is_vector}
    assert vectors == {"u", "v", "10u", "10v", "100u", "100v"}


def test_what_is_accumulated_or_bounded_is_not_smooth() -> None:
    rough = {name for name, entry in VARIABLES.items() if not entry.is_smooth}
    assert rough == {"tcc", "tp6h", "ssr6h", "rare"}
    assert {name for name, entry in VARIABLES.items() if entry.is_accumulated} == {"tp6h", "ssr6h"}


@pytest.mark.parametrize("text", [str(c) for s in CHANNEL_SETS.values() for c in s.channels])
def test_what_a_channel_prints_is_read_back(text: str) -> None:
    assert str(channel(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("z_500", Channel("z", 500)),
        ("geopotential_500", Channel("z", 500)),
        ("temperature850", Channel("t", 850)),
        ("t2m", Channel("2t")),
        ("2m_temperature", Channel("2t")),
        ("u10", Channel("10u")),
        ("u100m", Channel("100u")),
        ("u100", Channel("u", 100)),
        ("total_precipitation_6hr", Channel("tp6h")),
    ],
)
def test_spellings(text: str, expected: Channel) -> None:
    assert channel(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no channel"),
        ("500", "is no channel"),
        ("x500", "no variable is named 'x'; known: z, gh"),
        ("z", "is no channel|needs a pressure level"),
        ("2t500", "2t needs no level; got level 500"),
    ],
)
def test_what_is_no_channel(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        channel(text)


def test_levels_and_surfaces_do_not_mix() -> None:
    with pytest.raises(ValueError, match="z needs a pressure level; got level None"):
        Channel("z")
    with pytest.raises(ValueError, match="msl needs no level; got level 500"):
        Channel("msl", 500)


def test_aliases_name_variables() -> None:
    assert variable("mean_sea_level_pressure") is VARIABLES["msl"]
    with pytest.raises(ValueError, match="no variable is named 'snow'; known: z"):
        variable("snow")


def test_a_channel_describes_itself() -> None:
    assert Channel("z", 500).description == "z at 500 hPa [m2 s-2]"
    assert Channel("tp6h").description == "tp6h [kg m-2]"


@pytest.mark.parametrize(
    ("pressure", "height", "temperature"),
    [
        (1013.25, 0, 288.15),
        (850, 1457, 278.68),
        (500, 5574, 251.92),
        (226.32, 11000, 216.65),
        (100, 16180, 216.65),
    ],
)
def test_the_standard_atmosphere(pressure: float, height: float, temperature: float) -> None:
    """Against the printed tables of ISO 2533, heights in geopotential metres."""
    assert standard_height(pressure) == pytest.approx(height, abs=3)
    assert standard_temperature(pressure) == pytest.approx(temperature, abs=0.03)


@pytest.mark.parametrize("level", LEVELS)
def test_plausible_geopotential_tells_the_unit(level: int) -> None:
    """Geopotential height (m) in its place is seen where the two are apart: from 850 hPa up."""
    low, high = Channel("z", level).plausible
    height = standard_height(level)
    assert low < 9.80665 * height < high
    assert (height < low) == (level <= 850)
