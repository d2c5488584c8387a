"""Reference code for PyTorch readers: what the models compute and what that costs. Imports nothing of the project."""
