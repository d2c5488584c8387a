"""Checkpoints in and out: convert, load, export and inspect. See PORTING.md."""
