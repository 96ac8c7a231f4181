"""What each op and network costs on this machine, beside its peers: ``pytest benchmarks``."""
