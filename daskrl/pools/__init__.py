"""Where tasks run: in this process, or on a Dask worker pool that grows and shrinks."""
