"""Measurements behind the figures in the documentation; each writes its result to ``benchmarks/results/``."""
