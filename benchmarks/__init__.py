"""Speed and memory beside a peer's: `python benchmarks/NAME.py [--quick] --json OUT`."""
