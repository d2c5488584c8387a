"""Encoders are scored by the most probable label of each head."""
