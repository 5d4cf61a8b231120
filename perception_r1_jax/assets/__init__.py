"""What comes with the package, found wherever it is installed: a small tokenizer, the models of the small run."""

from importlib import resources
from pathlib import Path

_HERE = Path(str(resources.files(__name__)))

SMALL_TOKENIZER = _HERE / "tokenizer"
"""Tokenizer and chat template with Qwen2.5-VL's special tokens, for random models."""

MINI_POLICY = _HERE / "mini" / "policy"
"""A small Qwen2.5-VL that sees and solves problems of the geometry world imperfectly, in Hugging Face layout."""

MINI_JUDGE = _HERE / "mini" / "judge"
"""A small Qwen2.5 that says which facts a response states."""

MINI_JUDGE_PROMPT = _HERE / "mini" / "judge_prompt.json"
"""How the small judge is asked, in training and in use (`config.judge.prompt`)."""
