"""Raw releases and people's own files to examples: one module a format."""
