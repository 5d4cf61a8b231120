"""The judging LLM behind the visual reward: its prompt, its verdicts, and how it is asked on the mesh or over HTTP."""
