"""Greedy answers of vLLM to prompts of token ids. A program of its own: it runs in vLLM's environment, not in ours.

python vllm_answers.py REQUESTS.json ANSWERS.json
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams

if __name__ == "__main__":  # vLLM starts processes, which import this file again
    requests = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(requests["folder"], dtype="float32")
    greedy = [
        SamplingParams(temperature=0, max_tokens=n, stop_token_ids=requests["stop_ids"]) for n in requests["max_tokens"]
    ]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in requests["prompt_ids"]], greedy)
    Path(sys.argv[2]).write_text(json.dumps([output.outputs[0].text for output in outputs]))
