"""vLLM in an environment of its own: this file is run there, and knows nothing of the project.

    PYTHON_OF_VLLM benchmarks/vllm_side.py MODEL_DIR MAX_LENGTH

Reads a JSON object a line from stdin, {"prompts": [[id, ...], ...], "images": [[PATH], ...], "samples": G,
"new_tokens": C, "banned": [id, ...]}, and answers each with the token ids of all responses.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Serves until stdin ends."""
    directory, length = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed goes to stderr
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")  # compute on all cores, as ours does
    from PIL import Image
    from vllm import LLM, SamplingParams

    model = LLM(directory, dtype="float32", max_model_len=length, limit_mm_per_prompt={"image": 1}, max_num_seqs=64)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        for prompt, paths in zip(prompts, asked["images"]):
            if paths:
                prompt["multi_modal_data"] = {"image": [Image.open(path).convert("RGB") for path in paths]}
        sampling = SamplingParams(
            n=asked["samples"],
            temperature=1.0,
            max_tokens=asked["new_tokens"],
            ignore_eos=True,
            detokenize=False,
            logit_bias=dict.fromkeys(asked["banned"], -100.0),
        )
        model.reset_prefix_cache()
        model.reset_mm_cache()
        model.llm_engine.reset_encoder_cache()  # else a picture would be encoded in the first run alone
        done = model.generate(prompts, sampling, use_tqdm=False)
        print(json.dumps([[list(out.token_ids) for out in one.outputs] for one in done]), file=answers, flush=True)


if __name__ == "__main__":
    main()
