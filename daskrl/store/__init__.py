"""What lasts: the columns, the commit log, and the store of a run."""
