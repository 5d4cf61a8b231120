"""`scripts/generate.py`: the same tokens as transformers, and what a user reads where there can be no answer."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors.numpy
from rich.progress import Progress

from perception_r1_jax.weights import convert_huggingface
from perception_r1_jax.weights.random_checkpoint import VISION_TOKENS, write_random_checkpoint
from tests import parity

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "generate.py"
NEW_TOKENS = 24
QUESTION = "<image>In triangle ABC, AB = 16 and the angle at C is 98°. How long is BC?"  # the tag is text here
PICTURES = {"a.png": (140, 84), "b.png": (96, 230)}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("generate_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One model in three kinds of directory, a text-only model, and two pictures."""
    folder = tmp_path_factory.mktemp("generate")
    favour_banned_tokens(write_random_checkpoint(folder / "published", seed=3))
    favour_banned_tokens(write_random_checkpoint(folder / "nested", seed=3, nested=True))
    convert_huggingface(folder / "published", folder / "converted")
    write_random_checkpoint(folder / "text", "qwen2", seed=4)
    for seed, (name, size) in enumerate(PICTURES.items()):
        (folder / name).write_bytes(parity.drawing(*size, seed))
    return folder


def favour_banned_tokens(model: Path) -> None:
    """Makes the banned tokens the likeliest at most steps, so that a ban left out shows."""
    config = json.loads((model / "config.json").read_text())
    banned = [config[name] for name in VISION_TOKENS]
    file = model / json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]["lm_head.weight"]
    tensors = safetensors.numpy.load_file(file)
    tensors["lm_head.weight"][banned] *= 4
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})


def answer(script, model: Path, pictures: list[Path], prompt: str = QUESTION, *options: str) -> dict:
    """The script's answer, asked for as on the command line."""
    command = ["--model", str(model), "--prompt", prompt, "--max_new_tokens", str(NEW_TOKENS), *options]
    for picture in pictures:
        command += ["--image", str(picture)]
    return script.generate(script.parse_arguments(command))


def transformers_answer(model: Path, pictures: list[Path], prompt: str = QUESTION) -> dict:
    """The same from transformers' own tokenizer, chat template, image processor, model and `generate`."""
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    template = json.loads((model / "chat_template.json").read_text())["chat_template"]
    content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": prompt}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content if pictures else prompt}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
    )
    inputs = {}
    if pictures:
        images = [transformers.image_utils.load_image(str(picture)) for picture in pictures]
        inputs = dict(Qwen2VLImageProcessorPil.from_pretrained(model)(images=images, return_tensors="pt"))
        first, *rest = text.split("<|image_pad|>")
        counts = (inputs["image_grid_thw"].prod(-1) // 4).tolist()
        text = first + "".join("<|image_pad|>" * count + piece for count, piece in zip(counts, rest, strict=True))
    ids = tokenizer(text, return_tensors="pt").input_ids
    if pictures:
        inputs["mm_token_type_ids"] = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    kind = "Qwen2_5_VLForConditionalGeneration" if (model / "preprocessor_config.json").exists() else "Qwen2ForCausalLM"
    reference = getattr(transformers, kind).from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    banned = tokenizer.convert_tokens_to_ids(list(VISION_TOKENS.values())) if "VL" in kind else None
    out = reference.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        repetition_penalty=1.0,
        suppress_tokens=banned,
    )
    token_ids = out[0, ids.shape[1] :].tolist()
    return {
        "text": tokenizer.decode(token_ids, skip_special_tokens=True),
        "token_ids": token_ids,
        "prompt_tokens": ids.shape[1],
    }


def check_same(ours: dict, reference: dict) -> None:
    """Token for token, and on an answer that does not merely repeat itself."""
    assert {name: ours[name] for name in reference} == reference
    assert len(set(ours["token_ids"])) > 6, "a greedy loop compares little"
    stopped = len(ours["token_ids"]) < NEW_TOKENS
    assert ours["finish_reason"] == ("stop" if stopped else "length")


@pytest.mark.parametrize("pictures", [[], ["a.png"], ["a.png", "b.png"]], ids=["text", "one picture", "two pictures"])
def test_a_published_directory_answers_as_transformers(script, folder, pictures):
    paths = [folder / name for name in pictures]
    reference = transformers_answer(folder / "published", paths)
    check_same(answer(script, folder / "published", paths), reference)


@pytest.mark.parametrize("kind", ["nested", "converted"])
def test_other_directories_answer_the_same(script, folder, kind):
    paths = [folder / name for name in PICTURES]
    reference = transformers_answer(folder / ("nested" if kind == "nested" else "published"), paths)
    check_same(answer(script, folder / kind, paths), reference)


@pytest.fixture(scope="module")
def text_answer(script, folder) -> dict:
    return answer(script, folder / "text", [])


def test_a_text_only_model_answers_as_transformers(folder, text_answer):
    check_same(text_answer, transformers_answer(folder / "text", []))


def test_real_tokenizer_and_diagram(script, shared_data, tmp_path):
    model = write_random_checkpoint(tmp_path, tokenizer_dir=shared_data / "qwen2_5_vl_tokenizer", seed=5)
    problem = json.loads((shared_data / "geometry3k" / "train.jsonl").read_text().splitlines()[0])
    picture = shared_data / "geometry3k" / problem["image"]
    reference = transformers_answer(model, [picture], problem["problem_text"])
    check_same(answer(script, model, [picture], problem["problem_text"]), reference)


def test_a_temperature_draws_by_the_seed(script, folder):
    def draw(seed):
        options = ("--temperature", "1", "--seed", seed, "--dtype", "bfloat16")
        return answer(script, folder / "text", [], QUESTION, *options)["token_ids"]

    assert draw("1") != draw("2")


def test_the_answer_ends_with_the_stop_token(script, folder, text_answer, tmp_path):
    model = shutil.copytree(folder / "text", tmp_path / "model")
    tokens = text_answer["token_ids"]
    generation = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": tokens[5]}))
    stopped = answer(script, model, [])
    assert stopped["token_ids"] == tokens[: tokens.index(tokens[5]) + 1]
    assert stopped["finish_reason"] == "stop"


def test_as_a_command_prints_one_json_object(script, folder):
    """From another folder, by relative paths; a picture needs no text."""
    command = [sys.executable, str(SCRIPT), "--json", "--model", "converted", "--prompt", "", "--image", "a.png"]
    command += ["--max_new_tokens", "8"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert set(printed) == {"text", "token_ids", "prompt_tokens", "finish_reason"}
    assert len(printed["token_ids"]) == 8
    assert printed["finish_reason"] == "length"


PROMPTS = [
    {"id": "two", "prompt": QUESTION, "images": list(PICTURES)},
    {"prompt": "How long is AB?"},
    {"id": "absent", "prompt": "?", "images": ["no.png"]},
    {"id": 9, "prompt": QUESTION, "images": ["a.png"]},
    {"prompt": 5},
]


def ask_file(script, folder, output: Path, *options: str, prompts=PROMPTS, model="published") -> list[dict]:
    """The lines of the output, asked for as on the command line; the pictures lie beside the input."""
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    limits = ["--max_new_tokens", str(NEW_TOKENS), "--batch_size", "2"]
    command = ["--model", str(folder / model), "--input", str(source), "--output", str(output), *limits, *options]
    try:
        script.main(command)
    finally:
        written = output.read_text().splitlines() if output.exists() else []
    return [json.loads(line) for line in written]


def test_a_file_of_prompts_has_the_answers_of_each_alone_in_its_order(script, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        ask_file(script, folder, tmp_path / "out.jsonl")
    told = stop.value.code.splitlines()
    assert told[0] == "none for 2:"
    assert told[1].startswith("  absent: absent image (picture 1: ")
    assert told[2] == "  5: 'prompt' is not a text (5)"
    assert capsys.readouterr().err.splitlines()[-1] == f"{tmp_path / 'out.jsonl'}: 3 of 5 prompts have a reply"
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line.pop("id") for line in lines] == ["two", 2, "absent", 9, 5]
    assert [set(line) == {"error"} for line in lines] == [False, False, True, False, True]
    model = folder / "published"
    assert lines[0] == answer(script, model, [folder / name for name in PICTURES])
    assert lines[1] == answer(script, model, [], "How long is AB?")
    assert lines[3] == answer(script, model, [folder / "a.png"])
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


class Terminal(io.StringIO):
    """Takes what is shown on one."""

    def isatty(self) -> bool:
        return True


def test_a_job_that_was_cut_short_asks_only_for_the_rest(script, folder, tmp_path, monkeypatch):
    """Two prompts are answered at a time; the job ends with the first of them that are done."""
    from perception_r1_jax.inference import Engine

    prompts = [{"id": name, "prompt": f"How long is {name}?"} for name in ("AB", "BC", "CD", "DA")]
    generate, taken = Engine.generate, []

    def failing(*args, on_groups, **named):
        def take(groups):
            taken.append(len(groups.rows))
            more = on_groups(groups)
            if len(taken) == 1:
                raise KeyboardInterrupt
            return more

        return generate(*args, on_groups=take, **named)

    monkeypatch.setattr(Engine, "generate", failing)
    draw = ("--temperature", "1", "--top_p", "0.9", "--top_k", "50")
    with pytest.raises(SystemExit, match=r"stopped\. The same command goes on from .*out\.jsonl\.partial\."):
        ask_file(script, folder, tmp_path / "out.jsonl", *draw, prompts=prompts, model="text")
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.partial"]
    with pytest.raises(SystemExit, match=r"error: .*partial holds replies to something else \(top_k was 50 and is 0\)"):
        ask_file(script, folder, tmp_path / "out.jsonl", *draw[:4], prompts=prompts, model="text")
    lines = ask_file(script, folder, tmp_path / "out.jsonl", *draw, prompts=prompts, model="text")
    assert sum(taken) == 4, "nothing is answered twice"
    terminal, update, shown = Terminal(), Progress.update, []

    def watched(progress, task, **fields):
        shown.append(fields["completed"])
        update(progress, task, **fields)

    monkeypatch.setattr(Progress, "update", watched)
    monkeypatch.setattr(sys, "stderr", terminal)
    whole = ask_file(script, folder, tmp_path / "whole.jsonl", *draw, prompts=prompts[::-1], model="text")
    assert shown == [1, 2, 3, 4], "the bar moves with every reply"
    assert "generating" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
    assert lines == whole[::-1], "a draw is the same whatever it was drawn with"
    assert len({line["text"] for line in lines}) == 4


def test_a_job_goes_on_with_the_checkpoint_that_it_began_with(script, folder, tmp_path, monkeypatch):
    """A training run's latest step is another one later."""
    from perception_r1_jax.inference import Engine

    convert_huggingface(folder / "text", tmp_path / "model")
    weights = (tmp_path / "model/params").rename(tmp_path / "weights")
    monkeypatch.setattr(Engine, "generate", mock.Mock(side_effect=KeyboardInterrupt))
    for step, told in ((1, "^stopped"), (2, "model was '.*checkpoints/1' and is '.*checkpoints/2'")):
        shutil.copytree(weights, tmp_path / f"checkpoints/{step}")
        with pytest.raises(SystemExit, match=told):
            ask_file(script, folder, tmp_path / "out.jsonl", prompts=[{"prompt": "?"}], model=tmp_path)


def test_a_repetition_penalty_is_the_sampling_s(script):
    processor = mock.Mock(stop_ids=(1,), pad_id=0, banned_ids=())
    given = ["--model", "m", "--prompt", "?", "--repetition_penalty", "1.05"]
    assert script.make_sampling(script.parse_arguments(given), processor).repetition_penalty == 1.05
    assert script.make_sampling(script.parse_arguments(given[:4]), processor).repetition_penalty == 1


def test_the_likeliest_token_alone_is_greedy(script, folder, text_answer):
    for option in (("--top_k", "1"), ("--top_p", "1e-6")):
        assert answer(script, folder / "text", [], QUESTION, "--temperature", "1", *option) == text_answer


def test_a_file_as_a_command(folder, tmp_path):
    """From another folder; many faults are counted, and the first ones told."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "?"}\n' + "{\n" * 8)
    command = [sys.executable, str(SCRIPT), "--model", "text", "--max_new_tokens", "2"]
    command += ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    told = done.stderr.splitlines()[-8:]
    assert told[:2] == [f"{tmp_path / 'out.jsonl'}: 1 of 9 prompts have a reply", "none for 8:"]
    assert told[2].startswith("  2: invalid JSON (")
    assert told[7] == "  and 3 more"
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(1, 10))
    assert len(lines[0]["token_ids"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "one of the arguments --prompt --input is required"),
        (["--prompt", "hi", "--input", "in.jsonl"], "argument --input: not allowed with argument --prompt"),
        (["--prompt", "hi", "--output", "out.jsonl"], "--input and --output go together"),
        (["--input", "in.jsonl"], "--input and --output go together"),
        (["--input", "in.jsonl", "--output", "o.jsonl", "--image", "a.png"], "--image goes with --prompt"),
        (["--input", "no.jsonl", "--output", "o.jsonl"], "--input no.jsonl: no such file"),
        (["--input", "in.jsonl", "--output", "no/o.jsonl"], "--output no/o.jsonl: name a file in a folder that exists"),
        (["--input", "in.jsonl", "--output", "."], "--output .: name a file in a folder that exists"),
        (["--input", "in.jsonl", "--output", "./in.jsonl"], "is the input file; write to another one"),
    ],
)
def test_files_that_do_not_go_together_are_explained(script, capsys, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"prompt": "?"}\n')
    with pytest.raises(SystemExit) as stop:
        script.main(["--model", "m", *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_text_is_printed_in_any_locale(script, folder, monkeypatch, capfdbinary):
    result = {"text": "98° ∠", "token_ids": [1], "prompt_tokens": 1, "finish_reason": "stop"}
    monkeypatch.setattr(script, "generate", lambda args: result)
    with open(sys.stdout.fileno(), "w", encoding="ascii", closefd=False) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        script.main(["--model", "m", "--prompt", "?"])
        script.main(["--model", "m", "--prompt", "?", "--json"])
        stdout.flush()
    text, printed = capfdbinary.readouterr().out.decode("utf-8").splitlines()
    assert text == "98° ∠"
    assert json.loads(printed) == result


def broken_model(folder: Path, model: Path, fault: str) -> Path:
    """A copy of the published model with something wrong."""
    if fault == "absent":
        return model
    shutil.copytree(folder / "published", model)
    config = json.loads((model / "config.json").read_text())
    if fault == "no weights":
        [path.unlink() for path in model.glob("model*")]
    elif fault == "damaged weights":
        sorted(model.glob("*.safetensors"))[0].write_bytes(b"damaged")
    elif fault == "other architecture":
        (model / "config.json").write_text(json.dumps({"model_type": "gemma"}))
    elif fault == "config not an object":
        (model / "config.json").write_text("[]")
    elif fault == "other weights":
        (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    elif fault == "no tokenizer":
        (model / "tokenizer.json").unlink()
    elif fault == "damaged tokenizer":
        (model / "tokenizer.json").write_text("{}")
    elif fault == "no chat template":
        tokenizer = json.loads((model / "tokenizer_config.json").read_text())
        tokenizer.pop("chat_template")
        (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        (model / "chat_template.json").unlink()
    else:
        (model / fault).unlink()
    return model


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("absent", "is not a directory. Give one that holds a model"),
        ("no weights", "holds no model: neither model.safetensors or"),
        ("damaged weights", "is not a readable safetensors file"),
        ("other architecture", "config.json: model_type 'gemma' is not supported"),
        ("config not an object", "config.json: a list, not a JSON object"),
        ("other weights", "12 missing: model.layers.3."),
        ("config.json", "config.json is missing: copy it"),
        ("no tokenizer", "has neither tokenizer.json nor vocab.json and merges.txt"),
        ("damaged tokenizer", "cannot be read"),
        ("tokenizer_config.json", "has no tokenizer_config.json: give the directory of the tokenizer"),
        ("preprocessor_config.json", "has no preprocessor_config.json, which a model that reads pictures needs"),
        ("no chat template", "no chat template: neither chat_template.jinja nor"),
    ],
)
def test_a_model_that_cannot_be_used_is_explained(script, folder, tmp_path, fault, message):
    model = broken_model(folder, tmp_path / "model", fault)
    with pytest.raises(SystemExit, match=r"^error: ") as stop:
        script.main(["--model", str(model), "--prompt", "hi", "--image", str(folder / "a.png")])
    assert message in stop.value.code
    assert str(model) in stop.value.code


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("published", ["--image", "bad.png"], "error: corrupt image (picture 1: bad.png"),
        ("published", ["--image", "a.png", "--image", "no.png"], "error: absent image (picture 2: no.png)"),
        ("published", ["--image", "."], "error: image is a folder (picture 1: .)"),
        ("text", ["--image", "a.png"], "error: pictures for a text-only model"),
        ("text", ["--prompt", "\udcff"], "error: text is not Unicode"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_explained(script, folder, monkeypatch, model, options, message):
    monkeypatch.chdir(folder)
    (folder / "bad.png").write_text("no picture")
    with pytest.raises(SystemExit, match=r"^error: ") as stop:
        script.main(["--model", model, "--prompt", "hi", *options])
    assert message in stop.value.code
    assert "\n" not in stop.value.code


def test_weights_may_take_most_of_a_device(script, folder, monkeypatch):
    from perception_r1_jax.inference import engine
    from perception_r1_jax.inference.reshard import Serving
    from perception_r1_jax.models import load_config

    whole = Serving(load_config(folder / "text"), np.dtype("float32")).bytes
    monkeypatch.setattr(engine, "device_memory", lambda device: int(1.6 * whole))
    asked = ["--model", str(folder / "text"), "--prompt", "hi"]
    assert script.load_engine(script.parse_arguments(asked)).mesh.shape["tensor"] == 1
    assert script.load_engine(script.parse_arguments([*asked, "--weights_memory", "0.6"])).mesh.shape["tensor"] == 2
    with pytest.raises(SystemExit, match=r"^error: the weights take .* or --weights_memory\."):
        script.main([*asked, "--weights_memory", "0.1"])


def test_a_prompt_without_room_in_the_cache_is_explained(script, folder):
    with pytest.raises(SystemExit, match=r"^error: no room in the cache \(one response of 512 .* --cache_memory"):
        script.main(["--model", str(folder / "text"), "--prompt", "hi", "--cache_memory", "1e-9"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_new_tokens", "0"], "--max_new_tokens 0: must be at least 1"),
        (["--max_new_tokens", "few"], "argument --max_new_tokens: invalid int value: 'few'"),
        (["--temperature", "-1"], "--temperature -1.0: must be a number from 0 up"),
        (["--temperature", "nan"], "--temperature nan: must be a number from 0 up"),
        (["--top_k", "-1"], "--top_k -1: must be at least 0"),
        (["--top_p", "0"], "--top_p 0.0: must be above 0 and at most 1"),
        (["--batch_size", "0"], "--batch_size 0: must be at least 1"),
        (["--repetition_penalty", "0"], "--repetition_penalty 0.0: must be a number above 0"),
        (["--weights_memory", "0.9"], "--weights_memory 0.9 --cache_memory 0.2: must be above 0, and at most 1"),
        (["--cache_memory", "nan"], "--weights_memory 0.7 --cache_memory nan: must be above 0, and at most 1"),
        (["--seed", "-1"], "--seed -1: must be from 0"),
        (["--seed", str(2**40)], "must be from 0 to 4294967295"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_a_wrong_command_line_is_explained(script, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        script.main(["--model", "m", "--prompt", "hi", *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_platform_without_devices_is_explained(script, monkeypatch):
    """What jax says where no plugin (an assertion) or no driver is there."""
    for fault, told in (AssertionError(), "it has no device"), (RuntimeError("no\ndriver"), "no driver"):
        monkeypatch.setattr("jax.devices", mock.Mock(side_effect=fault))
        with pytest.raises(SystemExit, match=rf"^error: JAX_PLATFORMS=\w+ cannot be used: {told}"):
            script.main(["--model", "m", "--prompt", "hi"])


def test_an_unknown_platform_as_a_command(folder):
    command = [sys.executable, str(SCRIPT), "--model", "text", "--prompt", "hi"]
    environment = os.environ | {"JAX_PLATFORMS": "abacus"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: JAX_PLATFORMS=abacus cannot be used: ")
    assert "Traceback" not in done.stderr


def test_an_error_as_a_command(folder):
    command = [sys.executable, str(SCRIPT), "--json", "--model", "absent", "--prompt", "hi"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
