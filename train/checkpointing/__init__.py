"""What a training checkpoint holds, how it is written while training goes on, and the disk space for it."""
