"""The workloads, one folder each. They know `fednc.common` and nothing else; found by name."""
