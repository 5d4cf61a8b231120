"""The ablation: runs that differ in the reward alone, their records, and what the records say together."""
