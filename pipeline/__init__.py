"""Recipe in, finished run out: the stages in order, their cache, the command line and the report."""
