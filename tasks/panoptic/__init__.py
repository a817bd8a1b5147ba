"""Workload: every object, every region and the parts of objects (panoptic part segmentation)."""
