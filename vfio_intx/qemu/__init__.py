"""A running VM as an untrusted peer."""
