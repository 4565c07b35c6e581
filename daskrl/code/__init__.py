"""The user's own code: which it is, what it says, what it carries, and where it is found by name."""
