"""Does a run fit, and how long does it take? Arithmetic, before anything is loaded."""
