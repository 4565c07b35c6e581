"""What a run says while it goes on: figures, pages, and sinks."""
