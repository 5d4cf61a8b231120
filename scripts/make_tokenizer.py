"""Makes the repository's own tokenizers, with the special tokens and the conventions of Qwen2.5-VL's.

    python scripts/make_tokenizer.py --corpus sentences --out perception_r1_jax/assets/tokenizer
    python scripts/make_tokenizer.py --corpus world --out DIR
    python scripts/make_tokenizer.py --corpus judge --out DIR

Byte-level BPE, so that any text encodes. "sentences" are about geometry at large and make the tokenizer of random
models; digits stay single, as in Qwen's. "world" is what the embedded policy reads and writes: there letters stay
single too, and whole phrases are tokens, which makes responses half as long. "judge" is what the embedded judge reads
and writes: the same, but numbers up to 999 are one token each. All corpora are drawn from a fixed seed: the same files
come out every time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from perception_r1_jax.assets import MINI_JUDGE_PROMPT
from perception_r1_jax.data.geometry_world.conversations import (
    CUT,
    judge_conversation,
    misread,
    policy_conversation,
    retell,
)
from perception_r1_jax.data.geometry_world.families import FAMILIES
from perception_r1_jax.data.geometry_world.judging import true_verdicts
from perception_r1_jax.data.geometry_world.language import say
from perception_r1_jax.data.geometry_world.problems import make_puzzle, respond
from perception_r1_jax.data.key_info import format_key_info
from perception_r1_jax.judge.prompts import JudgeRequest, load_prompt
from perception_r1_jax.judge.template import answer_text
from perception_r1_jax.records import IMAGE_MARKER

SENTENCES = 6000
CONVERSATIONS = 4000
# What the policy's tokenizer is made of, so often each: its tasks, and what a response makes of a fact (`retell`).
# Not the shares that the models learn from: those may change, and the tokens that the policy has learned may not.
RETOLD = (5, 4, 1, 2, 0)
TASKS = {"solve": 5, "describe": 3, "read": 1, "probe": 3}
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Words with the space before them, a digit at a time, runs of punctuation, line ends, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Tags of answers and verdicts; a phrase in small letters with the spaces around it; letters one at a time.
WORLD_WORDS = (
    r"\n</(?:think|answer)>\n?|<(?:think|answer)>\n|\\boxed\{|</?info\p{N}+>\n?"
    r"| ?\p{Lu}?\p{Ll}+(?:,? \p{Ll}+)* ?|\p{L}"
)
# Digits one at a time.
WORLD_SPLIT = WORLD_WORDS + r"|\p{N}| ?[^\s\p{L}\p{N}]+ ?|\s+"
# Numbers whole, so that to compare two of them is to compare two tokens; and a full stop takes no part of a tag.
JUDGE_SPLIT = WORLD_WORDS + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}<]+ ?|<|\s+"
NUMBERS = 1000  # numbers below this are tokens
REPEATS = 10  # of each number in the corpus: enough to make it one

# One template for both families: content is a string, or a list of pictures and texts.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' -%}
{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- else -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

SENTENCE_PATTERNS = (
    "Find the length of {a}{b}.",
    "Find the measure of angle {a}{b}{c}. Round to the nearest tenth.",
    "Find the area of the {shape}. Round to the nearest hundredth if necessary.",
    "Find the perimeter of the {shape} {a}{b}{c}{d}.",
    "Find {x}. Assume that segments that appear to be tangent are tangent.",
    "In circle {a}, the radius is {n} and the chord {b}{c} is {m}. What is the value of {x}?",
    "If {a}{b} = {n} and {b}{c} = {m}, find {x}, so that the lines are parallel.",
    "Line {a}{b} is parallel to line {c}{d}.",
    "Line {a}{b} is perpendicular to line {c}{d} at point {e}.",
    "Point {a} lies on line {b}{c}.",
    "Point {a} lies on circle {b}, and {a}{c} is a diameter.",
    "The length of {a}{b} is {n}, and the length of {c}{d} is {m}{x}.",
    "Angle {a}{b}{c} is {n} degrees; the measure of arc {a}{c} is {m} degrees.",
    "$\\angle {a}{b}{c} = {n}^\\circ$ and $\\triangle {a}{b}{c} \\cong \\triangle {d}{e}{f}$.",
    "The picture shows a {shape} with vertices {a}, {b}, {c} and {d}.",
    "Triangle {a}{b}{c} is similar to triangle {d}{e}{f}, since two of their angles are equal.",
    "By the Pythagorean theorem, ${x}^2 = {n}^2 + {m}^2$, therefore ${x} = \\sqrt{{{n}}}$.",
    "$\\frac{{{n}}}{{{m}}} = \\frac{{{x}}}{{{o}}}$, so {x} = {n} \\times {o} / {m} = {o}.{n}",
    "$\\sin {n} = \\frac{{{x}}}{{{m}}}$, $\\cos {n} = \\frac{{{a}{b}}}{{{b}{c}}}$, "
    "$\\tan {o} = \\frac{{{n}}}{{{x}}}$, $\\pi r^2$.",
    "<think>\nThe diagram shows that {a}{b} = {n}. First, we need to find {x}.\n</think>\n"
    "<answer>\n\\boxed{{{n}}}\n</answer>",
    "<think>\nLet's look at the image. {a}{b} and {c}{d} are equal, so the answer is {n}.\n</think>\n"
    "<answer>\nThe final answer is \\boxed{{{n}\\sqrt{{{m}}}}}\n</answer>",
    "Think first inside <think> </think>, then give the final answer in \\boxed{{}} inside <answer> </answer>.",
    "<info1>Line {a}{b} has length {n}</info1>\n<info2>{a}{b}{c} is a right angle</info2>",
    "Judgement:\n<info1>1</info1>\n<info2>0</info2>\n<info3>1</info3>",
    "For each item, write 1 if the response shows the item and 0 if it does not.",
    "You are a judge. Read the annotations and the response of a student, then answer for each of them.",
    "Choices: (A) {n} (B) {m} (C) {o} (D) {n}.{m}",
)
SHAPES = (
    "triangle", "right triangle", "isosceles triangle", "equilateral triangle", "square", "rectangle", "rhombus",
    "parallelogram", "trapezoid", "kite", "quadrilateral", "pentagon", "regular hexagon", "circle", "sector",
)  # fmt: skip


def draw_sentences(seed: int = 0) -> Iterator[str]:
    """Draws the corpus: every pattern in turn, its letters, numbers and shapes at random."""
    rng = random.Random(seed)
    for number in range(SENTENCES):
        points = dict(zip("abcdef", rng.sample("ABCDEFGHJKLMNOPQRSTUVWXYZ", 6)))
        numbers = {name: rng.randint(1, 180) for name in "nmo"}
        pattern = SENTENCE_PATTERNS[number % len(SENTENCE_PATTERNS)]
        yield pattern.format(**points, **numbers, x=rng.choice("xyzwabhr"), shape=rng.choice(SHAPES))


def draw_world(seed: int = 0) -> Iterator[str]:
    """Draws what the policy of the world hears and says, and verdicts on it."""
    system = load_prompt(MINI_JUDGE_PROMPT).system
    for index in range(CONVERSATIONS):
        yield from ("system\n", "You are a helpful assistant.", "user\n", "assistant\n")  # of the chat template
        for message in policy_conversation(index, seed=seed, tasks=TASKS).messages:
            yield message.content.replace(IMAGE_MARKER, "")
        case = _draw_case(random.Random(f"judge/{seed}/train/{index}"))
        # In this order whatever the judge's prompt: other line ends would make other merges than the policy learned.
        yield from (system, f"{format_key_info(case.annotations)}\n{case.response}", answer_text(true_verdicts(case)))


def _draw_case(rng: random.Random) -> JudgeRequest:
    """Facts of a puzzle, some of them misread, and a response that states each of them once at most."""
    puzzle = make_puzzle(rng.choice(list(FAMILIES)), "train", rng)
    shown = puzzle.figure.facts()
    sentences = [sentence for fact in rng.sample(shown, len(shown)) for sentence in retell(fact, rng, RETOLD)]
    response = respond(puzzle, sentences, rng)
    if rng.random() < CUT:
        response = response[: rng.randrange(len(response))]
    listed = [*puzzle.needed, *(misread(fact, rng) for fact in shown if rng.random() < 0.3)]
    return JudgeRequest(tuple(map(say, rng.sample(listed, len(listed)))), response)


def draw_judged(seed: int = 0) -> Iterator[str]:
    """Draws what the judge of the world hears and says, and every number."""
    for _ in range(REPEATS):
        yield " ".join(map(str, range(NUMBERS)))
    for index in range(CONVERSATIONS):
        for message in judge_conversation(index, seed=seed).messages:
            yield from (f"{message.role}\n", message.content)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a tokenizer is made.

    Attributes:
        draw: what it is trained on.
        split: where text is split before merging.
        vocabulary: at most so many tokens, without the special ones.
        tokenizer_class: of transformers; it must leave the rule to split as it is.
    """

    draw: Callable[[], Iterable[str]]
    split: str
    vocabulary: int
    tokenizer_class: str


RECIPES = {
    "sentences": Recipe(draw_sentences, SPLIT, 1500, "Qwen2Tokenizer"),
    "world": Recipe(draw_world, WORLD_SPLIT, 760, "PreTrainedTokenizerFast"),
    "judge": Recipe(draw_judged, JUDGE_SPLIT, 1900, "PreTrainedTokenizerFast"),
}


def train_tokenizer(recipe: Recipe) -> tokenizers.Tokenizer:
    """Trains the vocabulary; the special tokens follow it, as in Qwen's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(recipe.split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(recipe.draw(), trainer)
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def write_tokenizer(out: Path, recipe: Recipe) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.json, where Qwen2.5-VL has them."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(recipe)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": recipe.tokenizer_class,
        "unk_token": None,
    }
    for name, content in (
        ("tokenizer_config.json", config),
        ("chat_template.json", {"chat_template": CHAT_TEMPLATE}),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    print(f"{tokenizer.get_vocab_size()} tokens written to {out}")


def main() -> None:
    """Reads the command line and writes the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=RECIPES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    write_tokenizer(args.out, RECIPES[args.corpus])


if __name__ == "__main__":
    main()
