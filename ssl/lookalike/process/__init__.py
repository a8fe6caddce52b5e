"""How ranks start, stop and fail: launcher, hostfile, signals, watchdog, fault injection."""
