"""Greedy evaluation of a policy, and what two evaluations of the same problems say together."""
