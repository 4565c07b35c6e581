"""What a learner draws from: the window of the newest rounds, and which of its transitions an update takes."""
