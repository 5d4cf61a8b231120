"""Supervised training: conversations packed into rows, loss on the responses, the update and its loop."""
