"""The rules by which workers share a study, on trials that need no storage."""

from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from elas_lightning.sweep.claims import DUPLICATE, FAILED, LOST, PLACE, STOPPED, Board

RUNNING, COMPLETE, PRUNED, FAIL = TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


def _trial(number: int, x: float | None, state: TrialState, how: str | None = None, **more: Any) -> FrozenTrial:
    trial = create_trial(
        state=state,
        value=1.0 if state == COMPLETE else None,
        params={} if x is None else {"x": x},
        distributions={} if x is None else {"x": FloatDistribution(0, 9)},
        user_attrs={} if how is None else {"ended": how},
        **more,
    )
    trial.number = number
    return trial


def _grid(*trials: FrozenTrial) -> Board:
    return Board(trials, 1, is_search=False)


PLACE_1 = '{"x": 1.0}'


@pytest.mark.parametrize(
    ("trials", "free", "settled"),
    [
        ([], True, False),
        ([_trial(0, 1.0, RUNNING)], False, False),
        ([_trial(0, 1.0, COMPLETE)], False, True),
        ([_trial(0, 1.0, PRUNED)], False, True),
        ([_trial(0, 1.0, FAIL, LOST)], True, False),
        ([_trial(0, 1.0, FAIL, STOPPED)], True, False),
        ([_trial(0, 1.0, FAIL, DUPLICATE)], True, False),
        # failures from before trial 5 are this call's to try again, its own are not
        ([_trial(4, 1.0, FAIL, FAILED)], True, False),
        ([_trial(5, 1.0, FAIL, FAILED)], False, True),
        ([_trial(4, 1.0, FAIL, FAILED), _trial(6, 1.0, FAIL, FAILED)], False, True),
        ([_trial(4, 1.0, FAIL, FAILED), _trial(6, 1.0, FAIL, LOST)], True, False),
        # an older version's, which did not say why
        ([_trial(0, 1.0, FAIL)], True, False),
        ([_trial(0, 2.0, COMPLETE)], True, False),
        ([_trial(0, 1.0, FAIL, LOST), _trial(1, 1.0, RUNNING)], False, False),
    ],
)
def test_a_place_is_free_when_nobody_has_it_and_something_is_left_to_do(
    trials: list[FrozenTrial], free: bool, settled: bool
) -> None:
    board = _grid(*trials)
    assert board.is_free(PLACE_1, retry_below=5) is free
    assert board.is_settled(PLACE_1, retry_below=5) is settled


def test_of_two_live_trials_of_a_point_the_lower_number_counts() -> None:
    first, second, other = _trial(3, 1.0, RUNNING), _trial(4, 1.0, RUNNING), _trial(5, 2.0, RUNNING)
    board = _grid(first, second, other)
    assert [board.is_surplus(trial, None) for trial in (first, second, other)] == [False, True, False]
    # the first one's worker was lost meanwhile: then the second is the one
    board = _grid(_trial(3, 1.0, FAIL, LOST), second)
    assert not board.is_surplus(second, None)


def test_a_search_draws_no_more_than_it_should() -> None:
    drawn = [_trial(0, 1.0, COMPLETE), _trial(1, 2.0, FAIL, LOST), _trial(2, None, RUNNING)]
    too_many = _trial(3, None, RUNNING)
    board = Board([*drawn, too_many], 1, is_search=True)
    assert not board.is_surplus(drawn[2], 3)
    assert board.is_surplus(too_many, 3)
    assert not board.is_surplus(too_many, 4)
    # the trial that goes on with a lost draw is no draw of its own
    again = _trial(4, 2.0, RUNNING, system_attrs={PLACE: "draw 1"})
    assert not Board([*drawn, again], 1, is_search=True).is_surplus(again, 3)


def test_a_draw_that_was_lost_before_it_had_a_point_is_drawn_anew() -> None:
    assert Board([_trial(0, None, FAIL, LOST)], 1, is_search=True).places == {}
    assert list(Board([_trial(0, 1.0, FAIL, LOST)], 1, is_search=True).places) == ["draw 0"]


def test_two_draws_of_one_point_are_two() -> None:
    board = Board([_trial(0, 1.0, COMPLETE), _trial(1, 1.0, RUNNING)], 1, is_search=True)
    assert len(board.places) == 2
    assert not board.is_surplus(board.trials[1], 2)


def test_workers_lost_in_vain_are_counted_since_the_last_progress() -> None:
    def lost(number: int, reached: int | None) -> FrozenTrial:
        values = {} if reached is None else {reached: 1.0}
        return _trial(number, 1.0, FAIL, LOST, intermediate_values=values)

    assert _grid(*[lost(i, None) for i in range(3)]).lost_in_vain(PLACE_1) == 3
    assert _grid(lost(0, None), lost(1, 100), lost(2, 100), lost(3, 100)).lost_in_vain(PLACE_1) == 2
    assert _grid(*[lost(i, 100 * i) for i in range(5)]).lost_in_vain(PLACE_1) == 0
    assert _grid(lost(0, None), _trial(1, 1.0, FAIL, FAILED), lost(2, None)).lost_in_vain(PLACE_1) == 1


def test_trials_that_wait_in_a_queue_are_nobodys() -> None:
    waiting = _trial(0, 1.0, TrialState.WAITING)
    assert _grid(waiting).is_free(PLACE_1, 0)
