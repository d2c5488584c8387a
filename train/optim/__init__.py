"""AdamW over sharded parameters, in four number formats."""
