"""The workloads, one folder each, found by name. They import only `fednc.common`."""
