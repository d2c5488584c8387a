"""Decoders are scored by what they write: decode, read back."""
