"""Ranks, meshes and all that is done to a model from outside: FSDP2, tensor parallelism, activation checkpointing."""
