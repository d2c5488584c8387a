"""AdamW over sharded parameters, with four choices of number formats."""
