"""Reference code: what the models compute and what it costs. Imports nothing else of the project."""
