"""Ranks, meshes, and what is applied to a model: FSDP2, tensor parallelism, activation checkpointing."""
