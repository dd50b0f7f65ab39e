"""A whole host with IOMMU, vfio-pci and KVM (L1), booted under TCG, for machines without the hardware."""
