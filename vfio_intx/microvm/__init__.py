"""A VM of one vCPU and some hundred bytes of guest, for selftest, bench and the tests."""
