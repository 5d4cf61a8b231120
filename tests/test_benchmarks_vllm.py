"""The pipe to vLLM: what is asked, and what comes back; vLLM itself has an environment of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import rollout, shape, vllm_peer, workload
from tests.stand_in import put_in_place

STAND_IN = '''#!{python}
"""Takes vllm_side.py's place: answers with the number of the response, and keeps what it was asked."""
import json, sys
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if not asked["prompts"][0]:
        sys.exit(3)
    pictures = [[len(open(path, "rb").read()) for path in paths] for paths in asked["images"]]
    json.dump({{"arguments": sys.argv[1:], **asked, "images": pictures}}, open({kept!r}, "w"))
    sizes = range(asked["samples"])
    print(json.dumps([[[sample] * asked["new_tokens"] for sample in sizes] for _ in asked["prompts"]]), flush=True)
'''


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The file in which the stand-in keeps what it was asked."""
    return put_in_place(STAND_IN, vllm_peer.VARIABLE, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return shape.load_model(tmp_path_factory.mktemp("checkpoints"), shape.STANDARD)


def test_what_is_asked_and_what_comes_back(model, kept):
    prompts = workload.picture_prompts(model.processor, 2, 90)
    with vllm_peer.VllmPeer(model.directory, model.processor, 200) as peer:
        said = peer.side(prompts, samples=3, new_tokens=4)()
    np.testing.assert_array_equal(said, np.broadcast_to(np.arange(3)[:, None], (2, 3, 4)))
    asked = json.loads(kept.read_text())
    assert asked["arguments"][1:] == [str(model.directory), "200"]
    assert (asked["samples"], asked["new_tokens"]) == (3, 4)
    assert asked["banned"] == list(model.processor.banned_ids)
    assert asked["images"] == [[len(prompt.problem.images[0])] for prompt in prompts]
    for ids, prompt in zip(asked["prompts"], prompts):
        assert ids.count(model.config.image_token_id) == 1, "vLLM repeats it as often as the picture asks"
        assert [token for token in ids if token != model.config.image_token_id] == [
            token for token in prompt.tokens.tolist() if token != model.config.image_token_id
        ]


def test_its_cases_are_added(model, kept):
    cases = rollout.plain(model.directory.parent, quick=True)
    assert cases[-1].case == "vllm_decode"
    assert cases[-1].ratio > 0


def test_a_process_that_ends_is_an_error(model, kept):
    with vllm_peer.VllmPeer(model.directory, model.processor, 200) as peer:
        (prompt,) = workload.text_prompts(model.processor, [0])
        with pytest.raises(RuntimeError, match="vLLM has ended with status 3"):
            peer.side([prompt], 1, 1)()
