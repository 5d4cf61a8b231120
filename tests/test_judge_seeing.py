"""A small random Qwen2.5-VL as judge: its verdicts are those of transformers, and depend on nothing but the request."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from perception_r1_jax.inference import Engine
from perception_r1_jax.judge.on_mesh import Judge, load_judge
from perception_r1_jax.judge.pictures import PicturePrompt, PictureRequest
from perception_r1_jax.judge.verdicts import Judgement
from perception_r1_jax.models import load_config
from perception_r1_jax.processing import PictureProcessor, Processor
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.weights import convert_huggingface, load_params
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from tests.attacks import ATTACKS, LONG
from tests.parity import drawing

PROMPT = PicturePrompt("Look.", "Asked:\n{question}\nText:\n{response}\nVerdict:")
SETTINGS = {"mode": "constrained", "max_prompt_tokens": 768, "max_new_tokens": 64, "batch_size": 4}
PIXELS = {"min_pixels": 3136, "max_pixels": 28 * 28 * 64}
PAD = "<|image_pad|>"
IMAGE = f"<|vision_start|>{PAD}<|vision_end|>"
SMALL = {"num_hidden_layers": 2, "vision_config": {"depth": 2, "fullatt_block_indexes": [1]}}
A, B, LARGE = drawing(140, 112, seed=0), drawing(84, 168, seed=1), drawing(448, 448, seed=2)
REQUESTS = [
    PictureRequest("How long is AB?", (A,), "AB is 5."),
    PictureRequest("How long is AB?", (B,), "AB is 5."),
    PictureRequest("How long is AB?", (A,), "The triangle ABC has a right angle at B, so AB is 5."),
    PictureRequest("Which is longer, <image> or <image>?", (A, B), "The second one."),
    PictureRequest("How long is AB?", (LARGE,), "AB is 5."),
    PictureRequest("What is BC?", (A,), "AB is 5."),
]


class Watched:
    """An engine that keeps what it chose and generated."""

    def __init__(self, engine: Engine):
        self._engine, self.kept = engine, []

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    def choose(self, *args, **kwargs):
        self.kept.append(self._engine.choose(*args, **kwargs))
        return self.kept[-1]

    def generate(self, *args, **kwargs):
        self.kept.append(self._engine.generate(*args, **kwargs))
        return self.kept[-1]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("judge"), "qwen2_5_vl", SMALL, scale=12.0)


@pytest.fixture(scope="module")
def processor(model_dir) -> Processor:
    return Processor.from_directory(model_dir, **PIXELS)


@pytest.fixture(scope="module")
def engine(model_dir) -> Engine:
    mesh = make_mesh(devices=jax.devices()[:1])
    config = load_config(model_dir)
    return Engine(config, load_params(model_dir, config, mesh), mesh)


def ask(engine, processor, requests, **settings) -> list[Judgement]:
    return Judge(engine, processor, PROMPT, **SETTINGS | settings).judge(requests)


@pytest.fixture(scope="module")
def alone(engine, processor) -> list[tuple[Judgement, np.ndarray]]:
    """Each request judged by itself: the judgement, and the logits of the two digits."""
    watched = Watched(engine)
    judgements = [ask(watched, processor, [request], batch_size=1) for request in REQUESTS]
    return [(judgement, chosen.logits[0, 0]) for (judgement,), chosen in zip(judgements, watched.kept, strict=True)]


class Reference:
    """The same model by transformers' own tokenizer, chat template, image processor and model."""

    def __init__(self, model_dir):
        import torch
        import transformers
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self._torch, self.tokenizer = torch, transformers.AutoTokenizer.from_pretrained(model_dir)
        self._template = json.loads((model_dir / "chat_template.json").read_text())["chat_template"]
        self._reader = Qwen2VLImageProcessorPil.from_pretrained(model_dir)
        self._reader.size = {"shortest_edge": PIXELS["min_pixels"], "longest_edge": PIXELS["max_pixels"]}
        architecture = transformers.Qwen2_5_VLForConditionalGeneration
        self._model = architecture.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager").eval()

    def logits(self, request: PictureRequest, answer: str) -> np.ndarray:
        """float32 [V], of what comes after the beginning of an answer."""
        pictures = [Image.open(io.BytesIO(picture)) for picture in request.images]
        inputs = dict(self._reader(images=pictures, return_tensors="pt"))
        *before, last = request.question.split("<image>")
        asked = [part for text in before or [""] * len(pictures) for part in (text, IMAGE)] + [last]
        user = PROMPT.user.replace("{question}", "".join(asked)).replace("{response}", request.response)
        messages = [{"role": "system", "content": PROMPT.system}, {"role": "user", "content": user}]
        text = self.tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
        )
        pieces = (text + answer).split(PAD)
        counts = [*(inputs["image_grid_thw"].prod(-1) // 4).tolist(), 0]
        ids = self.tokenizer("".join(p + PAD * n for p, n in zip(pieces, counts, strict=True)), return_tensors="pt")
        inputs["mm_token_type_ids"] = (ids.input_ids == self.tokenizer.convert_tokens_to_ids(PAD)).int()
        with self._torch.no_grad():
            return self._model(**ids, **inputs).logits[0, -1].numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@pytest.fixture(scope="module")
def reference(model_dir) -> Reference:
    pytest.importorskip("torch", reason="the reference needs torch")
    return Reference(model_dir)


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_a_verdict_is_that_of_transformers(alone, reference, number):
    judgement, logits = alone[number]
    digits = reference.tokenizer.convert_tokens_to_ids(["0", "1"])
    expected = reference.logits(REQUESTS[number], "<info1>")[digits]
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert judgement == Judgement((float(expected.argmax()),), 1, 1, "ok")
    assert judgement.probabilities == pytest.approx([1 / (1 + np.exp(expected[0] - expected[1]))], abs=1e-4)


def test_written_freely_an_answer_begins_as_that_of_transformers(engine, processor, reference):
    watched = Watched(engine)
    (judgement,) = ask(watched, processor, REQUESTS[:1], mode="free", batch_size=1)
    expected = reference.logits(REQUESTS[0], "")
    expected[list(processor.banned_ids)] = -np.inf
    assert watched.kept[0].tokens[0, 0, 0] == expected.argmax()
    assert watched.kept[0].logps[0, 0, 0] == pytest.approx(log_softmax(expected).max(), abs=1e-4)
    assert judgement.verdicts is None, "a model of random weights does not answer in form"


def test_a_verdict_depends_on_picture_question_and_response(alone):
    assert len({tuple(logits.round(3)) for _, logits in alone}) == len(REQUESTS)
    assert {judgement.verdicts for judgement, _ in alone} == {(0.0,), (1.0,)}


def test_it_does_not_depend_on_what_is_judged_beside_it(engine, processor, alone):
    """Neither on the batch nor on its padding; what cannot be asked fails by itself."""
    broken = [
        PictureRequest("How long is AB?", (A[:200],), "AB is 5."),
        PictureRequest("How long is AB?", (Path("nowhere.png"),), "AB is 5."),
        PictureRequest("Compare <image> and <image>.", (A,), "AB is 5."),
    ]
    none = PictureRequest("What is 2 + 2?", (), "It is 4.")
    long = [PictureRequest("How long is AB?", (A,), ATTACKS[name]) for name in LONG]
    judgements = ask(engine, processor, [*broken, *REQUESTS[::-1], none, *long])
    for judgement, (same, _) in zip(judgements[3:-3], alone[::-1], strict=True):
        assert judgement == same
        assert judgement.probabilities == pytest.approx(same.probabilities, abs=1e-5)
    assert [(judgement.status, judgement.expected) for judgement in judgements[:3]] == [("bad_picture", 1)] * 3
    assert judgements[-3] == Judgement(None, 0, 0, "none")
    assert judgements[-2:] == [Judgement(None, 1, 0, "too_long")] * 2


class Counting(PictureProcessor):
    """Keeps the pictures that it has read."""

    reads: ClassVar[list] = []

    def __call__(self, source):
        self.reads.append(source)
        return super().__call__(source)


def test_a_group_s_picture_is_read_once(engine, processor):
    counting = Counting(processor.pictures.processor)
    others = dataclasses.replace(processor, pictures=counting)
    ask(engine, others, [PictureRequest("How long is AB?", (A,), f"AB is {n}.") for n in range(4)])
    assert counting.reads == [A]


def test_no_attack_changes_the_form_of_a_verdict(engine, processor):
    attacks = [attack for name, attack in ATTACKS.items() if name not in (*LONG, "the examples")]
    judgements = ask(engine, processor, [PictureRequest("How long is AB?", (A,), attack) for attack in attacks])
    assert {(judgement.status, judgement.parsed) for judgement in judgements} == {("ok", 1)}


def test_it_is_loaded_from_a_directory_of_any_kind_with_a_wording_of_one_s_own(model_dir, alone, tmp_path):
    convert_huggingface(model_dir, tmp_path / "converted")
    (tmp_path / "prompt.json").write_text(json.dumps({"system": PROMPT.system, "user": PROMPT.user}))
    settings = SETTINGS | PIXELS | {"dtype": jnp.float32, "sees": True, "prompt": tmp_path / "prompt.json"}
    judge = load_judge(tmp_path / "converted", make_mesh(devices=jax.devices()[:1]), **settings)
    assert judge.judge(REQUESTS) == [judgement for judgement, _ in alone]
