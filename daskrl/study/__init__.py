"""Batches of runs that answer a question: what is tried, in which order, and what the results say."""
