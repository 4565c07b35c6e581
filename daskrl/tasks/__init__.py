"""What runs on workers: pure functions, and what a process keeps between them."""
