"""Statuses are counted one by one and failures logged kind by kind."""

from __future__ import annotations

from perception_r1_jax.rewards.tally import Tally, name_first


def test_a_full_step_of_failures_is_one_line_for_each_kind(caplog):
    tally = Tally()
    for response in range(1024):
        problem_id = f"p{response // 8}"
        tally.add("judge", "missing" if response % 2 else "ok", problem_id, failed=response % 2 == 1)
        tally.add("judge", "none", problem_id, failed=False)
        tally.add("custom", "failed", problem_id, failed=True, detail=f"KeyError: {response}")
    tally.warn()
    assert tally.counts == {"judge/missing": 512, "judge/ok": 512, "judge/none": 1024, "custom/failed": 1024}
    assert caplog.messages == [
        "custom reward: 1024 failed, of the problems p0, p1, p2, p3, p4, ...: KeyError: 0",
        "judge reward: 512 missing, of the problems p0, p1, p2, p3, p4, ...",
    ]


def test_no_failure_is_no_line(caplog):
    tally = Tally()
    tally.add("accuracy", "ok", "p", failed=False)
    tally.warn()
    assert not caplog.messages


def test_ids_stand_once_and_in_order():
    assert name_first(["b", "a", "b"]) == "b, a"
    assert name_first("abcde") == "a, b, c, d, e"
    assert name_first("abcdef") == "a, b, c, d, e, ..."
