"""Point clouds: networks whose answer does not depend on how a cloud is turned.

The source is the idea of weight-feature alignment (WFA). `task.py` is the entry; docs/pointcloud.md explains.
"""
