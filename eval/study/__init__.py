"""Many runs by one command: which, how each is started, what came out, and the table of all."""
