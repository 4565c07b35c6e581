"""The user's own code: telling it from installed packages, its source, the values it carries, and its names."""
