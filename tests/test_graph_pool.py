"""A pool of graphs that run in a circle: what stays, what must go, and what that costs."""

from collections import OrderedDict
from collections.abc import Sequence

import pytest

from fengwu_ghr.engine.graph_pool import GraphPool, PoolPlan
from fengwu_ghr.errors import ResourceError


def run(sizes: Sequence[int], budget: int, *, rounds: int) -> GraphPool[str]:
    pool: GraphPool[str] = GraphPool(sizes, budget, load=lambda number: f"graph {number}")
    for _ in range(rounds):
        for number in range(len(sizes)):
            assert pool.fetch(number) == f"graph {number}"
            assert sum(sizes[one] for one in pool.resident) <= budget
    return pool


def least_recently_used(sizes: Sequence[int], budget: int, *, rounds: int) -> int:
    """How often the usual cache would load."""
    held: OrderedDict[int, int] = OrderedDict()
    loads = 0
    for number in list(range(len(sizes))) * rounds:
        if number in held:
            held.move_to_end(number)
            continue
        while held and sum(held.values()) + sizes[number] > budget:
            held.popitem(last=False)
        held[number] = sizes[number]
        loads += 1
    return loads


def best_possible(sizes: Sequence[int], budget: int, *, rounds: int) -> int:
    """Belady's rule with the whole future in hand: what is used latest goes."""
    future = list(range(len(sizes))) * rounds
    held: set[int] = set()
    loads = 0
    for now, number in enumerate(future):
        if number not in held:
            while held and sum(sizes[one] for one in held) + sizes[number] > budget:
                held.remove(max(held, key=lambda one: [*future[now:], one].index(one)))
            held.add(number)
            loads += 1
    return loads


def test_all_that_fits_is_loaded_once() -> None:
    assert run([1] * 8, 8, rounds=5).loads == 8


@pytest.mark.parametrize("room", range(1, 9))
def test_graphs_of_one_size_are_loaded_as_seldom_as_can_be(room: int) -> None:
    assert run([1] * 8, room, rounds=6).loads == best_possible([1] * 8, room, rounds=6)


def test_the_usual_cache_would_load_every_graph_at_every_step() -> None:
    assert least_recently_used([1] * 32, 31, rounds=10) == 320
    assert run([1] * 32, 31, rounds=10).loads == 32 + 9


def test_sizes_may_differ() -> None:
    sizes = [3, 1, 4, 1, 5, 9, 2, 6]
    pool = run(sizes, 20, rounds=8)
    assert pool.loads <= least_recently_used(sizes, 20, rounds=8)


@pytest.mark.parametrize("budget", [9, 14, 20, 31])
def test_the_plan_is_what_happens(budget: int) -> None:
    sizes = [3, 1, 4, 1, 5, 9, 2, 6]
    plan = PoolPlan.of(sizes, budget)
    longer, shorter = (run(sizes, budget, rounds=rounds) for rounds in (21, 11))
    assert (longer.loads - shorter.loads) / 10 == pytest.approx(plan.loads, abs=1)
    assert plan.bytes <= budget


def test_a_plan_in_words() -> None:
    assert str(PoolPlan.of([2**30] * 3, 3 * 2**30)) == "3 of 3 graphs stay loaded"
    assert "are loaded anew at every step" in str(PoolPlan.of([2**30] * 3, 2 * 2**30))


def test_a_graph_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(
        ResourceError, match=r"graph 1 takes 2\.00 GiB, and 1\.00 GiB are left .* raise --memory-budget"
    ):
        PoolPlan.of([1, 2**31], 2**30)
