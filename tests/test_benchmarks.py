"""The benchmarks: what they time is the same work on both sides, and they write what is documented."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import judge, measure, rollout, rollout_large, shape, train_step, vllm_peer, workload
from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.models import count_params, load_config
from perception_r1_jax.processing import Processor
from perception_r1_jax.sharding import make_mesh
from tests.small_shape import SMALL

FIELDS = ["case", "ours", "peer", "unit", "ratio"]
CASES = {
    "group": {"group", "picture_per_sample", "shared_by_hand", "prompt_bytes", "peak_memory"},
    "plain": {"plain"},
    "long_tail": {"long_tail", "slot_utilisation"},
    "large": {"large", "copy_bandwidth", "bandwidth_share"},
}
ALONE = {"peak_memory", *CASES["large"]}


class FakeClock:
    """Runs that take a given time each, on a clock that only they move."""

    def __init__(self, **durations: list[float]):
        self.now, self.order = 0.0, []
        self.sides = {name: self._run(name, iter(times)) for name, times in durations.items()}

    def __call__(self) -> float:
        return self.now

    def _run(self, name, times):
        def run():
            self.order.append(name)
            self.now += next(times)

        return run


def test_sides_take_turns_after_a_warm_up_that_is_not_timed():
    clock = FakeClock(ours=[100, 1, 2, 3], peer=[200, 4, 5, 6])
    assert measure.interleave(clock.sides, 3, clock) == {"ours": [1, 2, 3], "peer": [4, 5, 6]}
    assert clock.order == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]


def test_a_warm_up_may_be_less_than_a_run():
    clock = FakeClock(ours=[1], little=[100])
    ours, little = clock.sides["ours"], clock.sides["little"]
    assert measure.interleave({"ours": ours}, 1, clock, warm={"ours": little}) == {"ours": [1]}
    assert clock.order == ["little", "ours"]


def test_throughput_is_work_over_the_median_and_the_ratio_is_of_medians():
    case = measure.throughput("plain", "tokens/s", 12, ours=[2, 90, 1], peer=[4, 3, 500])
    assert case == measure.Case("plain", ours=6, peer=3, unit="tokens/s", ratio=2)
    assert measure.throughput("plain", "tokens/s", 12, [3]) == measure.Case("plain", 4, None, "tokens/s", None)


def test_the_ratio_is_above_one_where_ours_is_better():
    assert measure.compare("speed", "1/s", 8.0, 2.0).ratio == 4
    assert measure.compare("memory", "MiB", 2.0, 8.0, less_is_better=True).ratio == 4


@pytest.mark.parametrize("seed", [0, 1])
def test_long_tail_lengths_have_the_median_and_percentile_asked_for(seed):
    lengths = workload.log_normal_lengths(256, 300, 1500, 4096, seed)
    assert np.median(lengths) == pytest.approx(300, rel=0.02)
    assert np.percentile(lengths, 95) == pytest.approx(1500, rel=0.03)
    assert lengths.max() == 4096
    assert lengths.min() >= 1
    assert abs(np.corrcoef(lengths, np.arange(256))[0, 1]) < 0.2  # in no order


def test_long_tail_lengths_depend_on_the_seed_alone():
    one, again, other = (workload.log_normal_lengths(64, 300, 1500, 4096, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(np.sort(one), np.sort(other))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.mark.parametrize(("made", "millions"), [(shape.STANDARD, 66), (shape.LONG, 5)])
def test_shapes_have_the_size_that_is_documented(checkpoints, made, millions):
    directory = shape.write_checkpoint(checkpoints, made)
    assert count_params(load_config(directory)) / 1e6 == pytest.approx(millions, rel=0.06)


def test_a_checkpoint_is_written_once(checkpoints):
    first = shape.write_checkpoint(checkpoints, shape.LONG)
    written = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert shape.write_checkpoint(checkpoints, shape.LONG) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == written


def test_prompts_are_those_asked_for(checkpoints):
    processor = Processor.from_directory(shape.write_checkpoint(checkpoints, shape.STANDARD))
    lengths = [8, 64, 31]
    texts = workload.text_prompts(processor, lengths)
    assert [len(prompt.tokens) for prompt in texts] == lengths
    assert not np.isin(np.concatenate([prompt.tokens for prompt in texts]), processor.banned_ids).any()
    pictures = workload.picture_prompts(processor, 2, 280)
    assert not np.array_equal(*(prompt.vision.patches[0] for prompt in pictures))
    assert [(prompt.image_slots >= 0).sum() for prompt in pictures] == [100, 100]
    assert workload.pack(processor, pictures).tokens.shape[1] % workload.LENGTH_STEP == 0


def test_a_side_that_does_less_work_is_an_error():
    with pytest.raises(RuntimeError, match=r"\[8, 7\] tokens, not 8"):
        rollout._check(np.array([8, 7]), 8)


def test_peer_and_ours_do_the_same_work(checkpoints):
    """At a temperature of almost 0 all give the same tokens: with a picture of their own, shared, and by hand."""
    pytest.importorskip("torch")
    model = shape.load_model(checkpoints, shape.STANDARD)
    prompts = workload.picture_prompts(model.processor, 2, 150)
    cold, new_tokens, samples = 1e-4, 6, 2
    sampling = rollout.endless(model.processor, new_tokens)
    greedy = Sampling(new_tokens, sampling.stop_ids, sampling.pad_id, 0.0, banned_ids=sampling.banned_ids)
    batch = workload.pack(model.processor, prompts)
    ours = Engine(model.config, model.params, model.mesh).generate(batch, samples, greedy, rollout.KEY)
    tokens = ours.tokens.reshape(len(prompts) * samples, new_tokens)
    assert not np.array_equal(tokens[0], tokens[samples])  # the pictures matter

    peer = rollout.load_peer(model)
    copies = [prompt for prompt in prompts for _ in range(samples)]
    np.testing.assert_array_equal(peer.generate(peer.inputs(prompts), samples, new_tokens, cold), tokens)
    np.testing.assert_array_equal(peer.generate(peer.inputs(copies), 1, new_tokens, cold), tokens)
    np.testing.assert_array_equal(peer.generate_shared(peer.inputs(prompts), samples, new_tokens, cold), tokens)


@pytest.mark.parametrize("name", rollout.WORKLOADS)
def test_quick_runs_write_the_documented_list(checkpoints, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(shape, "STANDARD", SMALL)
    if name in ("group", "plain"):
        pytest.importorskip("torch")
    out = tmp_path / "out.json"
    options = ["--quick", "--only", name, "--json", str(out), "--checkpoints", str(checkpoints)]
    measure.run(rollout.WORKLOADS, "", options)
    cases = json.loads(out.read_text())
    assert {case["case"] for case in cases} == CASES[name]
    assert len(cases) == len(CASES[name])
    for case in cases:
        assert list(case) == FIELDS
        assert case["ours"] > 0
        assert (case["peer"] is None) == (case["ratio"] is None) == (case["case"] in ALONE)
    shown = capsys.readouterr().out
    assert "cores" in shown
    assert all(case["case"] in shown for case in cases)


def test_without_torch_there_is_no_peer(checkpoints, monkeypatch):
    monkeypatch.setattr(shape, "STANDARD", SMALL)
    monkeypatch.setattr(rollout.importlib.util, "find_spec", lambda name: None)
    (case,) = rollout.plain(checkpoints, quick=True)
    assert case.ours > 0
    assert (case.peer, case.ratio) == (None, None)


def test_on_a_gpu_there_is_no_peer(monkeypatch, capsys):
    monkeypatch.setattr(measure, "device", lambda: ("gpu", "NVIDIA H100 80GB HBM3"))
    monkeypatch.setattr(rollout.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv(vllm_peer.VARIABLE, "python")
    assert rollout.load_peer(None) is None
    assert rollout.beside_vllm(None, [], 1, 1, None, 1) == {}
    assert judge.vllm(None, quick=True, count=1) == []
    assert not train_step.has_torch()
    told = "  no peer: it would run on the CPU, and ours runs on NVIDIA H100 80GB HBM3"
    assert capsys.readouterr().out.splitlines() == [told] * 4


def test_the_machine_is_told_with_its_device():
    device = jax.devices()[0]
    assert measure.device() == (device.platform, device.device_kind)
    assert measure.machine()["device"] == device.device_kind


def test_a_large_model_is_not_timed_on_a_cpu(checkpoints, capsys):
    assert rollout_large.large(checkpoints, quick=False) == []
    assert "give --quick for a tiny shape" in capsys.readouterr().out


@pytest.mark.parametrize("small", [SMALL, shape.LONG])
def test_a_step_reads_all_matrices_but_the_tower_and_the_table_of_tokens_and_the_cache(small, checkpoints):
    config = load_config(shape.write_checkpoint(checkpoints, small))
    engine = Engine(config, None, make_mesh(devices=jax.devices()[:1]), dtype=jnp.bfloat16)
    decoder = dataclasses.replace(config, vision=None)
    read = count_params(decoder) - config.vocab_size * config.hidden_size
    kept = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    assert not config.tie_embeddings
    assert rollout_large.step_bytes(engine, 100, 11) == 2 * (read + 111 * kept)


def test_no_other_case_has_a_documented_name_in_its_own():
    for names in CASES.values():
        for name in names - set(CASES):
            assert not any(documented in name for documented in CASES)
