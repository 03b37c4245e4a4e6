"""How a room lies on disk: the layout of ScanNet++, with scans, sparse model and class lists."""
