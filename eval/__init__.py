"""Scoring: greedy decoding with a KV cache, reading answers back, metrics and tables."""
