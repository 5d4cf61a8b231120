"""The pool of graders: order, deadlines, deaths, replacements, and what a failure is worth."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from perception_r1_jax.rewards import Accuracy, AccuracyPool, accuracy_reward
from perception_r1_jax.rewards.grading import OK, TIMED_OUT, UNREADABLE_TRUTH, WORKER_DIED

RIGHT, WRONG = (r"\boxed{5}", "5"), (r"\boxed{4}", "5")
TOWER = (r"\boxed{9^{9^{9^{9}}}}", "5")
DEADLINE = 2.0


@pytest.fixture(scope="module")
def pool():
    with AccuracyPool(workers=2, deadline_seconds=DEADLINE) as pool:
        yield pool


def test_order_is_kept_and_nothing_is_nothing(pool):
    items = [(rf"\boxed{{{n}}}", str(n if n % 3 else n + 1)) for n in range(60)]
    assert pool.score(items) == [Accuracy(float(n % 3 != 0), OK) for n in range(60)]
    assert pool.score([]) == []


def test_hanging_items_cost_their_deadline_and_not_the_run(pool):
    hanging = {1: TOWER, 4: (r"\boxed{100000000!}", "5"), 6: ("$" + "x" * 100_000 + "$", "5")}
    items = [hanging.get(index, RIGHT if index % 2 else WRONG) for index in range(12)]
    start = time.monotonic()
    results = pool.score(items)
    elapsed = time.monotonic() - start
    assert [index for index, result in enumerate(results) if result.status == TIMED_OUT] == [1, 4, 6]
    assert all(results[index].value is None for index in hanging)
    others = [index for index in range(12) if index not in hanging]
    assert [results[index] for index in others] == [Accuracy(float(index % 2), OK) for index in others]
    assert DEADLINE < elapsed < 3 * DEADLINE + 5
    assert pool.score([RIGHT, WRONG]) == [Accuracy(1.0, OK), Accuracy(0.0, OK)]


def settle(pool):
    """Waits until replaced workers have started."""
    while any(worker.booting for worker in pool._workers):
        pool._collect([])


@pytest.mark.parametrize("when", ["idle", "booting"])
def test_a_worker_killed_without_work_costs_no_item(pool, when):
    settle(pool)
    for index, worker in enumerate(pool._workers):
        if when == "booting":
            pool._replace(index)
            worker = pool._workers[index]
        worker.process.kill()
        worker.process.wait()
    assert pool.score([RIGHT, WRONG, RIGHT]) == [Accuracy(1.0, OK), Accuracy(0.0, OK), Accuracy(1.0, OK)]


def test_a_worker_killed_at_work_costs_its_item_only(pool):
    def kill_first_job():
        next(worker for worker in pool._workers if worker.job == 0).process.kill()

    settle(pool)
    threading.Timer(0.3, kill_first_job).start()
    assert pool.score([TOWER, RIGHT, WRONG]) == [Accuracy(None, WORKER_DIED), Accuracy(1.0, OK), Accuracy(0.0, OK)]


def test_an_interrupted_batch_does_not_answer_for_the_next(pool, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pool, "_collect", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.score([WRONG, WRONG])
    assert pool.score([RIGHT, RIGHT]) == [Accuracy(1.0, OK)] * 2


def test_signals_to_the_process_group_leave_the_workers_alone(pool):
    settle(pool)
    pids = [worker.process.pid for worker in pool._workers]
    for pid in pids:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert pool.score([RIGHT] * 8) == [Accuracy(1.0, OK)] * 8
    assert [worker.process.pid for worker in pool._workers] == pids


def test_unreadable_truth_is_a_failure(pool):
    assert pool.score([(r"\boxed{5}", "")]) == [Accuracy(None, UNREADABLE_TRUTH)]


@pytest.mark.parametrize(
    ("library", "message"),
    [
        ("def parse(text, **_): return [text]\ndef verify(*_, **__): return False", "fails its self-test.*scored 0.0"),
        ("raise ImportError('no such thing')", "did not start"),
    ],
)
def test_a_broken_scorer_does_not_start(library, message, tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text(library)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=message):
        AccuracyPool(workers=1)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="0 workers"):
        AccuracyPool(workers=0)
    with pytest.raises(ValueError, match="'papr'; use one of default, paper"):
        AccuracyPool(workers=1, fidelity="papr")


def test_workers_end_with_their_parent():
    code = (
        "import os, signal\nfrom perception_r1_jax.rewards import AccuracyPool\n"
        "pool = AccuracyPool(1)\nprint(pool._workers[0].process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    worker, patience = Path("/proc", done.stdout.strip()), time.monotonic() + 10
    while _runs(worker) and time.monotonic() < patience:
        time.sleep(0.05)
    assert done.stdout.strip()
    assert not _runs(worker)


def _runs(process: Path) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_accuracy_reward_from_any_thread():
    values = {}
    threads = [
        threading.Thread(target=lambda item=item: values.__setitem__(item, accuracy_reward(*item)))
        for item in (RIGHT, WRONG)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == {RIGHT: 1.0, WRONG: 0.0}


def test_accuracy_reward_is_nan_where_it_is_not_known():
    assert math.isnan(accuracy_reward(r"\boxed{5}", ""))
    start = time.monotonic()
    assert math.isnan(accuracy_reward(*TOWER))
    assert time.monotonic() - start < 12
    assert accuracy_reward(*RIGHT) == 1.0
