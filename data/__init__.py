"""From raw releases to packed rows: examples, tasks, prompts, tokenizers, packing and loading."""
