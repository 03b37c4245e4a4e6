"""What probes are fitted and judged on: one file a layout, each with a dataclass `Config` and `make(config) -> ProbeData`."""
