"""The pipeline: order, full batches, drops, and a position that can be saved and restored."""

from __future__ import annotations

import itertools
import threading

import pytest
from orbax.checkpoint import v1 as ocp

from perception_r1_jax.data import DataError, DroppedProblem
from perception_r1_jax.data.pipeline import make_pipeline
from perception_r1_jax.records import Problem

PROBLEMS = [Problem(str(number), "Find x.", (), "1") for number in range(23)]


def _prepare(problem):
    """Stands for the processor: the problem itself, ids 7 and 17 do not fit."""
    if problem.problem_id in ("7", "17"):
        raise DroppedProblem(problem.problem_id, "prompt above 9 tokens", "it has 12")
    return problem


def _pipeline(**changes):
    return make_pipeline(PROBLEMS, **({"to_prompt": _prepare, "batch_size": 4, "seed": 1} | changes))


def _ids(batches, count=None):
    return [[prompt.problem_id for prompt in batch] for batch in itertools.islice(batches, count)]


def test_same_seed_same_batches_other_seed_others():
    assert _ids(_pipeline(), 12) == _ids(_pipeline(prefetch=0), 12) == _ids(_pipeline(prefetch=3), 12)
    assert _ids(_pipeline(), 12) != _ids(_pipeline(seed=2), 12)


def test_an_epoch_gives_its_full_batches_each_problem_at_most_once():
    batches = _ids(_pipeline(epochs=3))
    assert len(batches) == 3 * (21 // 4)  # 23 problems, two of them dropped
    assert all(len(batch) == 4 for batch in batches)
    epochs = [list(itertools.chain(*batches[start : start + 5])) for start in (0, 5, 10)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_without_shuffle_the_order_is_that_of_the_data():
    assert _ids(_pipeline(shuffle=False), 3) == [["0", "1", "2", "3"], ["4", "5", "6", "8"], ["9", "10", "11", "12"]]
    assert _ids(_pipeline(shuffle=False), 6)[5] == ["0", "1", "2", "3"]


def test_dropped_problems_are_named_once():
    batches = _pipeline()
    _ids(batches, 11)
    assert batches.dropped == {name: f"{name}: prompt above 9 tokens (it has 12)" for name in ("7", "17")}


def _named(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_drop_is_named_in_the_log_when_it_happens_and_once(caplog):
    batches = _pipeline(shuffle=False)
    _ids(batches, 1)
    assert _named(caplog) == []
    _ids(batches, 1)
    assert _named(caplog) == ["dropped: 7: prompt above 9 tokens (it has 12)"]
    _ids(batches, 12)  # two more epochs
    assert [message.split(":")[1] for message in _named(caplog)] == [" 7", " 17"]


def test_a_drop_before_a_resume_is_not_named_again(caplog):
    first = _pipeline(shuffle=False)
    _ids(first, 2)
    resumed = _pipeline(shuffle=False)
    resumed.set_state(first.get_state())
    caplog.clear()
    _ids(resumed, 10)
    assert [message.split(":")[1] for message in _named(caplog)] == [" 17"]


@pytest.mark.parametrize("done", [0, 3, 5, 7])
def test_resumed_pipeline_continues_the_same(tmp_path, done):
    """Before the start, in the middle of an epoch, at its end, in the next; through an orbax checkpoint."""
    first = _pipeline()
    _ids(first, done)
    ocp.save_checkpointables(tmp_path / "state", {"data": first})
    dropped, rest = dict(first.dropped), _ids(first, 9)

    resumed = _pipeline()
    _ids(resumed, 2)
    ocp.load_checkpointables(tmp_path / "state", {"data": resumed})
    assert resumed.dropped == dropped
    assert _ids(resumed, 9) == rest
    assert resumed.get_state() == first.get_state()


def test_prompts_are_prepared_ahead_of_the_step():
    """The first batch is out; the second is prepared although nobody has asked for it."""
    prepared, enough = [], threading.Event()

    def prepare(problem):
        prepared.append(problem)
        if len(prepared) >= 8:
            enough.set()
        return problem

    batches = _pipeline(to_prompt=prepare)  # kept: its threads end with it
    next(batches)
    assert enough.wait(timeout=20)


def test_failure_that_is_not_the_datas_names_the_problem():
    def prepare(problem):
        raise KeyError("a bug")

    with pytest.raises(KeyError) as error:
        next(_pipeline(to_prompt=prepare, shuffle=False))
    assert "problem '0'" in error.value.__notes__[0]


def test_fewer_problems_than_a_batch():
    with pytest.raises(DataError, match="23 problems do not fill a batch of 24"):
        _pipeline(batch_size=24)


def test_an_epoch_too_poor_for_a_batch_is_an_error_not_an_endless_search():
    with pytest.raises(DataError, match=r"No batch of 22 .* 2 problems were dropped .*prompt above 9 tokens"):
        next(_pipeline(batch_size=22))
