"""A run on paper: its programs compiled ahead for a device that need not be there, and what they take."""
