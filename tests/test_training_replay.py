"""Rollouts on disk: what comes back, that a file is whole or not there, and which files are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from perception_r1_jax.config import default_config
from perception_r1_jax.errors import UserError
from perception_r1_jax.records import Rollout
from perception_r1_jax.training.replay import (
    SavedRollout,
    read_rollout,
    replay,
    rollout_file,
    rollouts_to_replay,
    write_rollout,
)

MASK = np.arange(5) < np.array([[[5], [2], [1]], [[3], [5], [4]]])
ROLLOUT = Rollout(
    tokens=np.where(MASK, np.arange(30, dtype=np.int32).reshape(2, 3, 5), 99),
    mask=MASK,
    logps=np.where(MASK, np.float32(-1 / 3), np.float32(0)),
    finish_reasons=[["length", "stop", "stop"], ["stop", "length", "stop"]],
    texts=[["a\nb", "∠ 98°", ""], ['"', "\0 \ud800", "f"]],
)
VOCABULARY = int(ROLLOUT.tokens.max()) + 1
SAVED = SavedRollout(7, 3, ["train/1", "∠"], ROLLOUT)


@pytest.fixture
def config():
    rollout = default_config().rollout
    rollout.samples_per_prompt, rollout.response_buckets = 3, (4, 8)
    return rollout


@pytest.fixture
def path(tmp_path):
    """A saved rollout."""
    write_rollout(tmp_path / "kept/step-000007.npz", SAVED)
    return tmp_path / "kept/step-000007.npz"


def check_same(ours: Rollout, theirs: Rollout):
    for name in ("tokens", "mask", "logps"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
    assert (ours.texts, ours.finish_reasons) == (theirs.texts, theirs.finish_reasons)


def test_what_is_written_is_read(path):
    read = read_rollout(path)
    assert (read.step, read.seed, read.problem_ids) == (7, 3, ["train/1", "∠"])
    check_same(read.rollout, ROLLOUT)


def test_a_file_holds_no_pickle(path):
    with np.load(path, allow_pickle=False) as archive:
        assert {archive[name].dtype.kind for name in archive.files} == {"i", "b", "f", "U"}


def test_a_write_that_fails_leaves_the_older_file(path):
    broken = dataclasses.replace(SAVED, rollout=dataclasses.replace(ROLLOUT, texts=[[object()]]))
    with pytest.raises(TypeError):
        write_rollout(path, broken)
    check_same(read_rollout(path).rollout, ROLLOUT)
    write_rollout(path, dataclasses.replace(SAVED, step=8))
    assert read_rollout(path).step == 8
    assert [file.name for file in path.parent.glob("*.npz")] == [path.name]


def test_a_rollout_of_the_batch_is_replayed(path, config):
    check_same(replay(path, 7, ["train/1", "∠"], config, VOCABULARY), ROLLOUT)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"step": 8}, "saved at step 8 of a run with seed 3, cannot be replayed at step 7"),
        (
            {"problem_ids": ["train/1", "train/2"]},
            "has the problem 'train/2' in place 1 where this run's batch has '∠'",
        ),
        ({"problem_ids": ["train/1"], "rollout": {"tokens": ROLLOUT.tokens[:1]}}, "this run has 2 prompts x 3 samples"),
        ({"rollout": {"mask": MASK[:, :, :4]}}, r"'mask': \(2, 3, 4\)"),
        (
            {"rollout": {"tokens": ROLLOUT.tokens + 1}},
            f"this policy's go from 0 to {VOCABULARY - 1}. Replay it with the",
        ),
        ({"rollout": {"tokens": ROLLOUT.tokens - VOCABULARY}}, "has token ids from -"),
        ({"rollout": {"texts": [["a", "b"], ["c", "d", "e"]]}}, "texts for 5 responses"),
        ({"rollout": {"finish_reasons": [["stop"] * 3]}}, "this run has 2 prompts x 3 samples of at most 8 tokens"),
        ({"rollout": {name: np.zeros((2, 3, 9)) for name in ("tokens", "mask", "logps")}}, "of at most 8 tokens"),
    ],
)
def test_a_rollout_that_is_not_the_batch_s_is_refused(path, config, fault, message):
    changed = dataclasses.replace(ROLLOUT, **fault.pop("rollout", {}))
    write_rollout(path, dataclasses.replace(SAVED, rollout=changed, **fault))
    with pytest.raises(UserError, match=message):
        replay(path, 7, ["train/1", "∠"], config, VOCABULARY)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut", "half", "array", "objects", "other"])
def test_a_file_that_holds_no_rollout_is_named(path, content):
    if content == "half":
        content = path.read_bytes()[: path.stat().st_size // 2]
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "array":
        np.save(path.open("wb"), MASK)
    elif content == "objects":
        np.savez(path, **{name: np.array([object()]) for name in ("tokens", "mask", "logps", "about")})
    else:
        np.savez(path, other=MASK)
    with pytest.raises(UserError, match=r"step-000007\.npz holds no rollout \(\w+: .*Give a file that"):
        read_rollout(path)


def test_which_steps_take_which_file(path):
    folder = path.parent
    later = rollout_file(folder, 9)
    write_rollout(later, dataclasses.replace(SAVED, step=9))
    assert rollouts_to_replay("", range(1, 20)) == {}
    assert rollouts_to_replay(str(folder), range(1, 20)) == {7: path, 9: later}
    assert rollouts_to_replay(str(folder), range(8, 20)) == {9: later}
    assert rollouts_to_replay(str(path.rename(folder / "mine.npz")), range(1, 20)) == {7: folder / "mine.npz"}
    assert rollouts_to_replay(str(folder), range(20, 20)) == {}, "a finished run takes no step"


def test_nothing_to_replay_is_said(path):
    with pytest.raises(UserError, match="was saved at step 7, and this run goes from step 1 to 6"):
        rollouts_to_replay(str(path), range(1, 7))
    with pytest.raises(UserError, match=r"has no step-000008\.npz or later one, and this run goes from step 8 to 9"):
        rollouts_to_replay(str(path.parent), range(8, 10))
