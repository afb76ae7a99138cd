"""What a save costs and how often it is worth it: worked out by hand."""

import math

import pytest

from pitstop.checkpoint import Saved
from pitstop.session.cost import SaveCost
from pitstop.session.rows import Clock


def saved(stall: float, write: float) -> Saved:
    return Saved(step=1, stall_seconds=stall, write_seconds=write, bytes=1, error=None)


def save(cost: SaveCost, begun: Clock, ended: Clock, stall: float, write: float) -> float:
    cost.began(begun)
    return cost.ended(ended, saved(stall, write))


def warmed(mtbf: float = 7200.0) -> SaveCost:
    """Warm after three steps, which took three seconds."""
    cost = SaveCost(mtbf)
    for steps in (1, 2, 3):
        cost.stepped(Clock(steps, float(steps)))
    return cost


def test_young() -> None:
    """A save that costs a second, a failure every two hours: sqrt(2 * 1 * 7200) = 120 s."""
    cost = SaveCost(7200)
    assert cost.interval == 5
    assert save(cost, Clock(1, 1.0), Clock(2, 2.0), stall=0.25, write=0.75) == 0.75, "all of it, while nothing is known"
    assert cost.interval == pytest.approx(120)


def test_young_is_where_both_losses_are_least() -> None:
    """By the sum itself: saves cost C of each T seconds, a failure loses half of T every M seconds."""
    cost = SaveCost(1000)
    save(cost, Clock(0, 0.0), Clock(0, 0.0), stall=0.2, write=0.0)
    lost = {seconds: 0.2 / seconds + seconds / 2 / 1000 for seconds in (0.1 * tick for tick in range(1, 2000))}
    assert cost.interval == pytest.approx(min(lost, key=lost.__getitem__), abs=0.1)


def test_the_slowdown() -> None:
    """From step 13, at 0.2 s a step, five steps took 1.5 s: half a second more than they should."""
    cost = warmed()
    assert save(cost, Clock(13, 5.0), Clock(18, 6.5), stall=0.1, write=2.0) == pytest.approx(0.5)
    assert cost.interval == pytest.approx(math.sqrt(2 * 0.6 * 7200))


def test_steps_beside_a_save_are_not_usual_ones() -> None:
    """Step 18 to 28 at 0.2 s again; were the slow five counted, a step would usually take 0.22 s."""
    cost = warmed()
    save(cost, Clock(13, 5.0), Clock(18, 6.5), stall=0.1, write=2.0)
    assert save(cost, Clock(28, 8.5), Clock(33, 10.0), stall=0.1, write=2.0) == pytest.approx(0.5)


def test_it_is_neither_negative_nor_more_than_the_write() -> None:
    cost = warmed()
    assert save(cost, Clock(13, 5.0), Clock(18, 5.1), stall=0.1, write=2.0) == 0.0
    assert save(cost, Clock(28, 7.1), Clock(33, 60.0), stall=0.1, write=2.0) == 2.0


def test_a_save_during_the_warm_up() -> None:
    """Nothing usual is known: the write counts whole, and what comes then is not spoiled by it."""
    cost = SaveCost(7200)
    assert save(cost, Clock(1, 9.0), Clock(2, 10.0), stall=0.0, write=0.5) == 0.5
    cost.stepped(Clock(3, 11.0))
    assert save(cost, Clock(13, 13.0), Clock(18, 14.5), stall=0.0, write=2.0) == pytest.approx(0.5)


def test_the_median_of_the_last_five() -> None:
    cost = SaveCost(50)
    for seconds in (100.0, 1.0, 1.0, 100.0, 1.0):
        save(cost, Clock(0, 0.0), Clock(0, 0.0), stall=seconds, write=0.0)
    assert cost.interval == pytest.approx(10)
    for seconds in (4.0, 4.0, 4.0, 1.0):
        save(cost, Clock(0, 0.0), Clock(0, 0.0), stall=seconds, write=0.0)
    assert cost.interval == pytest.approx(20)


def test_never_shorter_than_the_write() -> None:
    cost = warmed(mtbf=10)
    save(cost, Clock(13, 5.0), Clock(113, 25.0), stall=0.05, write=20.0)
    assert cost.interval == 20.0
