"""Groups that are judged and graded while others are drawn: the same scores, hidden time, clean ends."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest

from perception_r1_jax.inference.call import Call as Decoding
from perception_r1_jax.judge.call import AnyJudge, JudgeCall
from perception_r1_jax.judge.on_mesh import MeshCall
from perception_r1_jax.judge.prompts import load_prompt
from perception_r1_jax.judge.remote import connect_judge
from perception_r1_jax.judge.verdicts import Judgement
from perception_r1_jax.records import Problem
from perception_r1_jax.rewards.failures import RewardFailed
from perception_r1_jax.rewards.grading import OK, Accuracy
from perception_r1_jax.rewards.score import RewardSettings
from perception_r1_jax.training import loop, setup
from perception_r1_jax.training.metrics import read_lines
from perception_r1_jax.training.stopping import Stopped
from perception_r1_jax.training.streaming import Stream
from perception_r1_jax.training.timing import Clock
from tests.judge_server import Call, ScriptedServer
from tests.test_training_remote_judge import digits
from tests.training_run import one_device_mesh, small_config, train

STRETCH_SECONDS = 0.5
PROBLEMS = [Problem(f"p{row}", "", (), str(row), ("fact",) * (row + 1)) for row in range(3)]
TEXTS = [["0", "1"], ["1", "2"], ["2", "3"]]


@pytest.fixture(autouse=True)
def small_run(monkeypatch):
    monkeypatch.setattr(setup, "make_mesh", one_device_mesh)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def nothing_is_left() -> bool:
    """Whether no thread of a judge, and none of the cheap rewards, is alive."""
    return not any(thread.name.startswith(("judge", "cheap")) for thread in threading.enumerate())


def never() -> None:
    """Lets everything be waited for."""


class Grader:
    """Stands for the pool of workers: right where response and truth are the same text. Or it fails."""

    def __init__(self, error: Exception | None = None):
        self.error, self.calls = error, []

    def score(self, items):
        self.calls.append(len(items))
        if self.error:
            raise self.error
        return [Accuracy(float(response == truth), OK) for response, truth in items]


def say(call: Call) -> None:
    call.say(digits(call, call.user.count("</info")))


def make_stream(judge, *, streaming=True, grader=None, check=never) -> Stream:
    pool, settings = grader or Grader(), RewardSettings()
    return Stream(PROBLEMS, judge, streaming=streaming, pool=pool, settings=settings, clock=Clock(), check=check)


@pytest.mark.parametrize("streaming", [True, False])
def test_groups_may_come_in_any_order(streaming):
    grader, whole = Grader(), Grader()
    with ScriptedServer(say) as server:
        judge = connect_judge(server.address)
        with make_stream(judge, streaming=streaming, grader=grader) as stream:
            stream.add([2], [TEXTS[2]])
            stream.add([0, 1], TEXTS[:2])
            judgements, cheap = stream.judgements(), stream.cheap()
        with make_stream(judge, streaming=streaming, grader=whole) as stream:
            stream.add([0, 1, 2], TEXTS)
            assert (stream.judgements(), stream.cheap()) == (judgements, cheap)
    assert [[judgement.expected for judgement in row] for row in judgements] == [[1, 1], [2, 2], [3, 3]]
    assert [[accuracy.value for accuracy in group.accuracy] for group in cheap] == [[1, 0]] * 3
    assert (grader.calls, whole.calls) == ([2, 4], [6])


class MeshLikeJudge(AnyJudge):
    """Judges within `add`, as one on the mesh does, where it runs `batch` first."""

    prompt, parameters, compilations = load_prompt(), 0, 0

    def __init__(self, batch):
        self.batch = batch

    def begin(self, judging=None, check=None):
        return MeshLikeCall(self.batch)

    def take_metrics(self):
        return {}


class MeshLikeCall(JudgeCall):
    def __init__(self, batch):
        self.batch, self.judgements = batch, []

    def __exit__(self, *_):
        pass

    def add(self, requests):
        self.batch()
        self.judgements += [Judgement((1.0,) * one.expected, one.expected, one.expected, "ok") for one in requests]

    def finish(self):
        return self.judgements


def test_cheap_rewards_are_computed_while_the_judge_runs():
    """Neither can end without the other: the grader waits for the judge's batch to begin, and that for the grader."""
    judging, grading = threading.Event(), threading.Event()

    class WaitingGrader(Grader):
        def score(self, items):
            assert judging.wait(30), "the judge runs only after the cheap rewards"
            grading.set()
            return super().score(items)

    def batch():
        judging.set()
        assert grading.wait(30), "the cheap rewards are computed only after the judge"

    with make_stream(MeshLikeJudge(batch), grader=WaitingGrader()) as stream:
        stream.add([0, 1, 2], TEXTS)
        assert [len(row) for row in stream.judgements()] == [2, 2, 2]
        assert len(stream.cheap()) == 3


def test_without_a_judge_the_cheap_rewards_are_computed():
    with make_stream(None) as stream:
        stream.add([1, 0, 2], [TEXTS[1], TEXTS[0], TEXTS[2]])
        assert stream.judgements() is None
        assert [len(group.format) for group in stream.cheap()] == [2, 2, 2]


def test_a_defect_in_the_cheap_rewards_is_raised_and_leaves_no_thread():
    with ScriptedServer(lambda call: call.hang(60)) as server:
        judge, started = connect_judge(server.address), time.monotonic()
        with make_stream(judge, grader=Grader(RuntimeError("no worker starts"))) as stream:
            stream.add([0, 1, 2], TEXTS)
            with pytest.raises(RuntimeError, match="no worker starts"):
                stream.cheap()
    assert time.monotonic() - started < 30
    assert nothing_is_left()


def test_a_stop_ends_the_wait_for_a_silent_judge_and_leaves_no_thread():
    def check():
        raise Stopped

    with ScriptedServer(lambda call: call.hang(60)) as server:
        judge, started = connect_judge(server.address), time.monotonic()
        with make_stream(judge, check=check) as stream:
            stream.add([0, 1, 2], TEXTS)
            with pytest.raises(Stopped):
                stream.judgements()
    assert time.monotonic() - started < 30
    assert nothing_is_left()


def config_for(server: ScriptedServer | None = None, **fields):
    """Two groups that are drawn one after the other: there are as many slots as a group has samples."""
    remote = {"judge.path": server.address, "judge.retries": 0} if server else {}
    return small_config(**{"steps": 2, "rollout.slots": 2, **remote, **fields})


def samples_of(workdir):
    return read_lines(workdir / "samples.jsonl")


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """The working directory of an uninterrupted run with a judge behind HTTP, which waits for the rollout."""
    workdir = tmp_path_factory.mktemp("remote")
    with pytest.MonkeyPatch.context() as patch, ScriptedServer(say) as server:
        patch.setattr(setup, "make_mesh", one_device_mesh)
        patch.setenv("NO_PROXY", "127.0.0.1")
        train(config_for(server, **{"judge.streaming": False}), workdir)
    return workdir


def test_a_judge_on_the_mesh_judges_full_batches_between_stretches_and_the_scores_are_the_same(tmp_path, monkeypatch):
    happened: dict[bool, list[str]] = {}
    run_batch, draw = MeshCall._run, loop.roll_out

    def judging(*args):
        now.append("judged")
        run_batch(*args)

    def drawing(*args):
        rollout = draw(*args)
        now.append("drawn")
        return rollout

    monkeypatch.setattr(MeshCall, "_run", judging)
    monkeypatch.setattr(loop, "roll_out", drawing)
    for streaming in (True, False):
        now = happened.setdefault(streaming, [])
        fields = {"steps": 1, "judge.streaming": streaming, "judge.batch_size": 1}
        train(config_for(**fields), tmp_path / str(streaming))
    assert len(samples_of(tmp_path / "True")) == 4
    assert samples_of(tmp_path / "True") == samples_of(tmp_path / "False")
    assert happened[True].index("drawn") >= 2, "the batches of a group before the last one is drawn"
    assert happened[False].index("drawn") == 0
    assert len(happened[True]) == len(happened[False]), "there are no more batches"
    (line,) = read_lines(tmp_path / "True/metrics.jsonl")
    assert line["time/judge"] > 0
    assert line["time/judge_hidden"] + line["time/judge_exposed"] <= line["time/judge"]


def test_a_remote_judge_answers_while_responses_are_drawn(remote, tmp_path, monkeypatch):
    decode = Decoding._decode

    def slow_decode(call, level):
        time.sleep(STRETCH_SECONDS)
        return decode(call, level)

    def slow_answer(call: Call) -> None:
        time.sleep(1.5)
        say(call)

    monkeypatch.setattr(Decoding, "_decode", slow_decode)
    with ScriptedServer(slow_answer) as server:
        train(config_for(server), tmp_path)
    assert samples_of(tmp_path) == samples_of(remote)
    for line in read_lines(tmp_path / "metrics.jsonl"):
        hidden, exposed = line["time/judge_hidden"], line["time/judge_exposed"]
        assert hidden >= STRETCH_SECONDS
        assert exposed > 0, "the last group's answers are waited for"
        drawing_and_waiting = line["time/rollout"] + line["time/judge"]
        assert drawing_and_waiting < line["time/rollout"] + hidden + exposed - 0.8 * STRETCH_SECONDS
        assert drawing_and_waiting < line["time/step"]


def test_a_stop_while_the_judge_is_silent_is_noticed_and_the_step_is_made_again(remote, tmp_path, capsys):
    stopped = []

    def script(call: Call) -> None:
        number = server.calls.index(call)
        if number < 4:
            say(call)
            return
        if number == 7:  # all of the second step have come: nothing is left to do but to wait
            stopped.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)
        call.hang(300)

    with ScriptedServer(script) as server:
        assert train(config_for(server), tmp_path) is None
        assert time.monotonic() - stopped[0] < 60, "what it takes to save; the server is silent for 300 s"
    assert "stopped after step 1, which is saved" in capsys.readouterr().out
    assert nothing_is_left()
    with ScriptedServer(say) as server:
        train(config_for(server), tmp_path)
    assert samples_of(tmp_path) == samples_of(remote)
    again, whole = (json.loads((run / "result.json").read_text())["rewards"] for run in (tmp_path, remote))
    assert again == whole


def test_a_judgement_that_fails_under_abort_ends_the_run_after_its_rollout(tmp_path):
    fields = {"judge.on_failure": "abort", "rollout.save": str(tmp_path / "kept")}
    with ScriptedServer(lambda call: call.send(500)) as server, pytest.raises(RewardFailed):
        train(config_for(server, **fields), tmp_path / "run")
    assert nothing_is_left()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["step-000001.npz"]
