//! From a machine specification to a wired machine: bus, devices, memory map, firmware tables.
