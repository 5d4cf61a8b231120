"""The judging LLM behind the visual reward: its prompt, its verdicts, and its run on the mesh."""
