"""Examples to packed rows of prompts and answers, for models that write."""
