//! Kernel image formats: sniffing, bzImage, ELF/PVH, vmlinux, Multiboot 1.
