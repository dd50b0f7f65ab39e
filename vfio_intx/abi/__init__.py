"""What the kernel's headers say. The only folder that imports fcntl or ctypes."""
