"""No response changes the form of a verdict or leaves its place: in both modes, on the mesh and behind HTTP."""

from __future__ import annotations

import json
import re
import threading

import jax
import jax.numpy as jnp
import pytest

from perception_r1_jax.judge.on_mesh import Judge, load_judge
from perception_r1_jax.judge.prompts import JudgePrompt, JudgeRequest, load_prompt
from perception_r1_jax.judge.remote import connect_judge
from perception_r1_jax.judge.server import JudgeServer
from perception_r1_jax.judge.service import JudgeService
from perception_r1_jax.judge.verdicts import Judgement
from perception_r1_jax.processing import Processor
from perception_r1_jax.sharding import make_mesh
from tests.attacks import ATTACKS, LONG
from tests.judge_server import Call, ScriptedServer
from tests.test_judge_on_mesh import ScriptedEngine

FACTS = ("AB is 5.", "BC is 6.", "ABC is a triangle.")
REQUESTS = [JudgeRequest(FACTS, attack) for attack in ATTACKS.values()]
PROMPT = JudgePrompt("Judge.", "Facts:\n{annotations}\nText:\n{response}\nVerdicts:")
SETTINGS = {"max_prompt_tokens": 768, "max_new_tokens": 96, "batch_size": 4}
attacks = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def processor(model_dir) -> Processor:
    return Processor.from_directory(model_dir)


@pytest.fixture(scope="module")
def wording(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompt") / "prompt.json"
    path.write_text(json.dumps({"system": PROMPT.system, "user": PROMPT.user}))
    return path


@attacks
@pytest.mark.parametrize("raw", [False, True], ids=["sanitised", "raw"])
def test_the_control_tokens_of_a_prompt_are_the_template_s_own(processor, attack, raw):
    """Even a text pasted in as it is has none, since the encoder spells it out."""

    def control(response: str) -> list[int]:
        prompt = load_prompt()
        messages = (prompt.raw_messages if raw else prompt.messages)(JudgeRequest(FACTS, response))
        added = set(processor.tokenizer.added_tokens_encoder.values())
        return [token for token in processor.chat_prompt(messages).tokens.tolist() if token in added]

    assert control(attack) == control("AB is 5.")
    assert len(control(attack)) > 3


def repeat(response: str) -> str:
    """A judge that the response has taken over altogether: it says what it is told."""
    return response


@pytest.fixture(scope="module")
def taken_over(processor) -> Judge:
    settings = SETTINGS | {"max_prompt_tokens": 200_000, "max_new_tokens": 100_000}
    return Judge(ScriptedEngine(processor, repeat), processor, PROMPT, mode="free", **settings)


@attacks
def test_a_free_judge_that_only_repeats_the_response_gives_no_verdict(taken_over, attack):
    (judgement,) = taken_over.judge([JudgeRequest(FACTS, attack)])
    assert (judgement.verdicts, judgement.parsed, judgement.status) == (None, 0, "unreadable")


def test_a_remote_judge_that_only_repeats_the_response_gives_no_verdict():
    def script(call: Call) -> None:
        call.say(re.search(r"\nStudent response:\n(.*)\nJudgement:$", call.user, re.DOTALL)[1])

    with ScriptedServer(script) as server:
        judgements = connect_judge(server.address).judge(REQUESTS)
        raw = connect_judge(server.address, fidelity="paper").judge(REQUESTS)
    assert judgements == [Judgement(None, 3, 0, "unreadable")] * len(REQUESTS)
    fooled = sum(judgement.verdicts == (1.0, 1.0, 1.0) for judgement in raw)
    assert fooled >= 8  # what sanitising is for


@pytest.mark.parametrize("mode", ["constrained", "free"])
def test_verdicts_have_their_form_on_the_mesh_and_behind_http(model_dir, wording, mode):
    """A model of random weights: constrained it must answer in form, free it does not, and never to order."""
    mesh = make_mesh(devices=jax.devices()[:1])
    judge = load_judge(model_dir, mesh, prompt=wording, mode=mode, dtype=jnp.float32, **SETTINGS)
    judgements = dict(zip(ATTACKS, judge.judge(REQUESTS)))
    for name, judgement in judgements.items():
        if name in (*LONG, "the examples"):
            assert judgement == Judgement(None, 3, 0, "too_long")
        elif mode == "constrained":
            assert judgement.status == "ok"
            assert len(judgement.verdicts) == 3
            assert set(judgement.verdicts) <= {0.0, 1.0}
        else:
            assert judgement.status in ("empty", "unreadable")
    assert behind_http(judge, wording) == list(judgements.values())


def behind_http(judge: Judge, wording) -> list[Judgement]:
    """What a remote judge says of the same requests, this one being served."""
    server = JudgeServer(JudgeService(judge, "judge"), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    settings = {"prompt": wording, "max_new_tokens": SETTINGS["max_new_tokens"], "timeout_seconds": 250}
    judgements = connect_judge(f"http://127.0.0.1:{server.server_port}", **settings).judge(REQUESTS)
    server.shutdown()
    server.finish()
    return judgements
