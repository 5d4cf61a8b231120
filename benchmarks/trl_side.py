"""TRL's GRPOTrainer in an environment of its own: this file is run there, and knows nothing of the project.

    PYTHON_OF_TRL benchmarks/trl_side.py SETTINGS

SETTINGS is a JSON object: {"model": DIR, "problems": [{"question", "image": PATH, "answer"}, ...], "samples": G,
"new_tokens": C, "banned": [id, ...], "weights": {reward: weight}, "ngram_size", "repetition_max_penalty",
"learning_rate", "weight_decay", "rows": responses that the update takes through the model at a time, "more": further
arguments of GRPOConfig}. For each line on stdin the trainer takes a step, and {"prompts": [[id, ...], ...], "lengths":
[tokens, ...], "rewards": [sum, ...], "peak_bytes"} is answered.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import tempfile
from typing import Any

FORM = re.compile(r"<think>\n.*\n</think>\n<answer>\n.*\\boxed\{.+\}.*\n</answer>", re.DOTALL)


def main() -> None:
    """Serves until stdin ends."""
    asked = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed goes to stderr
    with tempfile.TemporaryDirectory() as out:
        make_trainer(asked, out, answers).train()


def make_trainer(asked: dict[str, Any], out: str, answers: Any) -> Any:
    """The trainer, which answers each step."""
    import torch
    from datasets import Dataset, Image
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Told(GRPOTrainer):
        """The trainer, and what it saw and made in the last step."""

        def _tokenize_prompts(self, prompts):
            found = super()._tokenize_prompts(prompts)
            self.prompts = found[0][:: asked["samples"]]
            return found

        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            self.rewards, self.lengths = rewards @ self.reward_weights, [len(ids) for ids in completion_ids_list]
            return rewards

    class Serve(TrainerCallback):
        """Takes a step for each line of stdin."""

        def on_train_begin(self, args, state, control, **_):
            answer("ready")

        def on_step_end(self, args, state, control, **_):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            rewards = trainer.rewards.tolist()
            answer({"prompts": trainer.prompts, "lengths": trainer.lengths, "rewards": rewards, "peak_bytes": peak})

    def answer(said: Any) -> None:
        print(json.dumps(said), file=answers, flush=True)
        if not sys.stdin.readline():
            raise SystemExit

    torch.set_num_threads(os.cpu_count())
    problems = [
        {
            "prompt": [{"role": "user", "content": problem["question"]}],
            "image": problem["image"],
            "answer": problem["answer"],
        }
        for problem in asked["problems"]
    ]
    functions = reward_functions(asked["ngram_size"], asked["repetition_max_penalty"])
    config = GRPOConfig(
        output_dir=out,
        use_cpu=True,
        bf16=False,
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=asked["rows"],
        gradient_accumulation_steps=len(problems) * asked["samples"] // asked["rows"],
        num_generations=asked["samples"],
        max_completion_length=asked["new_tokens"],
        generation_kwargs={"min_new_tokens": asked["new_tokens"], "suppress_tokens": asked["banned"]},
        beta=0.0,
        reward_weights=[asked["weights"][name] for name in functions],
        learning_rate=asked["learning_rate"],
        weight_decay=asked["weight_decay"],
        max_steps=1_000_000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **asked["more"],
    )
    trainer = Told(
        asked["model"],
        list(functions.values()),
        config,
        Dataset.from_list(problems).cast_column("image", Image(mode="RGB")),
        callbacks=[Serve()],
    )
    return trainer


def reward_functions(ngram_size: int, max_penalty: float) -> dict[str, Any]:
    """The cheap rewards by name, each from all completions to a number for each."""

    def each(name: str, score: Any) -> Any:
        def reward(completions, answer, **_):
            return [score(completion[0]["content"], truth) for completion, truth in zip(completions, answer)]

        reward.__name__ = name
        return reward

    def accuracy(text: str, truth: str) -> float:
        blocks = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
        return float((blocks[-1] if blocks else text).strip() == truth)

    def repetition(text: str, _: str) -> float:
        words = text.lower().split()
        grams = [tuple(words[start : start + ngram_size]) for start in range(len(words) - ngram_size + 1)]
        return max_penalty * (1 - len(set(grams)) / len(grams)) if grams else 0.0

    scores = {
        "format": lambda text, _: float(bool(FORM.fullmatch(text))),
        "accuracy": accuracy,
        "repetition": repetition,
        "custom": lambda text, _: len(text) / 100,
    }
    return {name: each(name, score) for name, score in scores.items()}


if __name__ == "__main__":
    main()
