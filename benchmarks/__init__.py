"""Scripts that measure the documentation's figures; each writes its result to ``benchmarks/results/``."""
