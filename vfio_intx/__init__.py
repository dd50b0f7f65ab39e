"""vfio-intx: wire, prove, time and mend level-triggered VFIO interrupts of KVM guests."""

__version__ = "0.1.0"
