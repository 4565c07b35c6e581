"""What is asked of a store afterwards: curves, greedy episodes, policies, and whether a fragment comes out the same."""
