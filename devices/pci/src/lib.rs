//! PCI host bridge, configuration space, ECAM, BARs, interrupts.
