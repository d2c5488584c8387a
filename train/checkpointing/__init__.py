"""The contents of a training checkpoint, saving it (also in the background), and the disk space that it needs."""
