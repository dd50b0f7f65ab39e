"""Facts of this machine: frozen, read-only, every path under one HostRoot."""
